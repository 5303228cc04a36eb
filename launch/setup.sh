# Sourced by launch/quickstart and tests/run: packages, build, and settings that mpirun needs before it starts.
# Needs `root`, the repository, to be set. Everything here speaks on standard error.

missing_packages() {
  local name
  while read -r name; do
    case $name in ''|'#'*) continue ;; esac
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' || printf '%s ' "$name"
  done < "$root/launch/packages.txt"
}

ensure_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "This is not a Debian system: the packages of launch/packages.txt must be there under their local names." >&2
    return 0
  fi
  local missing
  missing=$(missing_packages)
  missing=${missing% }
  [ -z "$missing" ] && return 0
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      printf 'Packages are missing. Install them and start again:\n\n  sudo apt-get update && sudo apt-get install --no-install-recommends -y %s\n\n' "$missing" >&2
      return 1
    fi
    as_root=(sudo -n)
  fi
  echo "Installing packages: $missing" >&2
  # shellcheck disable=SC2086  # one word per package
  { "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y -q $missing; } >&2
}

# nproc would repeat OMP_NUM_THREADS.
cores() { env -u OMP_NUM_THREADS nproc; }

# build PRESET TARGET...: configures and builds; the folder is $root/build/PRESET.
build() {
  local preset=$1
  shift
  (cd "$root" && cmake --preset "$preset" --log-level=WARNING && cmake --build "build/$preset" --parallel "$(cores)" --target "$@") >&2
}

# Open MPI: messages between processes of this machine with one copy and no listening sockets on ranks; a host or link
# that is gone is noticed in seconds and not in minutes. Variables that are already set win.
export_mpi_profile() {
  export OMPI_MCA_pml="${OMPI_MCA_pml-ob1}"
  export OMPI_MCA_btl="${OMPI_MCA_btl-self,vader}"
  export OMPI_MCA_oob_tcp_keepalive_time="${OMPI_MCA_oob_tcp_keepalive_time-3}"
  export OMPI_MCA_oob_tcp_keepalive_intvl="${OMPI_MCA_oob_tcp_keepalive_intvl-1}"
  export OMPI_MCA_oob_tcp_keepalive_probes="${OMPI_MCA_oob_tcp_keepalive_probes-3}"
  # Root in a container is the usual case; the files a run writes are the run folder's only.
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}
