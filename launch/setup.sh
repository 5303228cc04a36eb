# Sourced by launch/quickstart and tests/run: packages, build, and settings that mpirun needs before it starts.
# Needs `root`, the repository, to be set. Everything here speaks on standard error.

# missing_packages FILE...
missing_packages() {
  local name
  while read -r name; do
    case $name in ''|'#'*) continue ;; esac
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' || printf '%s ' "$name"
  done < <(cat "$@")
}

# ensure_packages [FILE...]: those of launch/packages.txt and of the files.
ensure_packages() {
  set -- "$root/launch/packages.txt" "$@"
  if ! command -v dpkg-query >/dev/null; then
    echo "This is not a Debian system: the packages of ${*#"$root/"} must be there under their local names." >&2
    return 0
  fi
  local missing
  missing=$(missing_packages "$@")
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

# What building and testing with CUDA needs beyond the packages. The toolkit itself must be there; cuobjdump and
# nvdisasm, which some installations leave out, are taken from PyPI into build/cuda-tools.
ensure_cuda_tools() {
  if ! command -v "${CUDACXX:-nvcc}" >/dev/null; then
    if [ ! -x /usr/local/cuda/bin/nvcc ]; then
      echo "The CUDA toolkit, 12.4 or newer, is missing: install NVIDIA's package cuda-toolkit, or set CUDACXX to its nvcc." >&2
      return 1
    fi
    export CUDACXX=/usr/local/cuda/bin/nvcc
  fi
  PATH=$PATH:$(dirname "$(command -v "${CUDACXX:-nvcc}")")
  local tools=$root/build/cuda-tools
  if ! { command -v cuobjdump && command -v nvdisasm; } >/dev/null && [ ! -e "$tools/complete" ]; then
    echo "Installing cuobjdump and nvdisasm to $tools" >&2
    if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --upgrade --target "$tools" \
      'nvidia-cuda-cuobjdump>=13,<14' 'nvidia-cuda-nvdisasm>=13,<14' >&2; then
      echo "cuobjdump or nvdisasm of the CUDA toolkit is missing: install NVIDIA's packages cuda-cuobjdump and cuda-nvdisasm, or python3-pip to get them from PyPI." >&2
      return 1
    fi
    touch "$tools/complete"
  fi
  local folder
  for folder in "$tools"/nvidia/*/bin; do
    if [ -d "$folder" ]; then PATH=$folder:$PATH; fi  # first, so that the two are of one version
  done
  export PATH
}

# nproc would repeat OMP_NUM_THREADS.
cores() { env -u OMP_NUM_THREADS nproc; }

# build PRESET TARGET...: configures and builds; the folder is $root/build/PRESET. Presets, and pip, compile most files with the
# same options, so the second finds them in ccache, which must not care in which folder it runs.
build() {
  local preset=$1
  shift
  if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER-ccache}"
    export CMAKE_CUDA_COMPILER_LAUNCHER="${CMAKE_CUDA_COMPILER_LAUNCHER-ccache}"
    export CCACHE_NOHASHDIR=true
  fi
  (cd "$root" && cmake --preset "$preset" --log-level=WARNING >/dev/null && cmake --build "build/$preset" --parallel "$(cores)" --target "$@") >&2
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
