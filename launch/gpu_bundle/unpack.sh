# shellcheck shell=sh disable=SC2034,SC2154
# Sourced by the scripts of the bundle, with `here`, its folder, set: unpacks programs and libraries to a temporary folder
# (below TMPDIR, else /tmp) that goes away with the script. Sets `programs_folder`, and the library path.
unpacked=$(mktemp -d) || exit 2
trap 'rm -rf "$unpacked"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tar -xzf "$here/programs.tar.gz" -C "$unpacked" || exit 2
programs_folder=$unpacked/bin
export LD_LIBRARY_PATH="$unpacked/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
