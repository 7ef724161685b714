#!/bin/sh
# A folder that runs on a machine without our libraries: binaries, the shared libraries that they need, and Open MPI.
#   tools/bundle.sh OUT_DIR BINARY...
#   OUT_DIR/run NAME ARGUMENT...                  a binary by itself
#   OUT_DIR/run mpirun -n 2 NAME ARGUMENT...      under the bundle's mpirun
# The C and C++ run-time libraries are the machine's own (at least as new as this one's).
set -eu
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1
shift
system='^(ld-linux|linux-vdso|libc|libm|libdl|librt|libpthread|libresolv|libutil|libstdc\+\+|libgcc_s|libcuda|libnccl)\.'

# Open MPI's own folders, from the mpirun that is used here.
launcher=$(readlink -f "$(command -v mpirun)")
library=$(ldd "$launcher" | sed -n 's/.*libopen-rte[^ ]* => \([^ ]*\) .*/\1/p')
folder=$(dirname "$(readlink -f "$library")")
plugins=
for place in "$folder/openmpi/lib/openmpi3" "$folder/openmpi" "$folder/openmpi3"; do
  if [ -e "$place/mca_pml_ob1.so" ]; then plugins=$place; fi
done
[ -n "$plugins" ] || { echo "error: bundle: no plugins of Open MPI near $folder" >&2; exit 2; }

mkdir -p "$out/bin" "$out/lib/openmpi" "$out/lib/pmix" "$out/share/openmpi" "$out/share/pmix" "$out/etc"
for binary; do install -m 755 "$binary" "$out/bin/"; done
install -m 755 "$launcher" "$out/bin/mpirun"
install -m 755 "$(readlink -f "$(command -v orted)")" "$out/bin/orted"

# Plugins of one host and of TCP between hosts; fabrics, batch systems, file I/O and one-sided memory stay at home.
for plugin in "$plugins"/mca_*.so; do
  case ${plugin##*/mca_} in
    *ofi* | *ucx* | *openib* | *psm* | *slurm* | *gridengine* | *simulator* | *flux* | *monitoring* | *lockedfile*) ;;
    io_* | fs_* | fbtl_* | fcoll_* | sharedfp_* | osc_* | atomic_* | memheap_* | scoll_* | spml_* | sshmem_* | vprotocol_* | op_avx* | topo_treematch*) ;;
    *) install -m 644 "$plugin" "$out/lib/openmpi/" ;;
  esac
done
for place in "$folder"/pmix2/lib/pmix "$folder"/pmix; do
  for plugin in "$place"/*mca_*.so; do
    case ${plugin##*/} in *slurm* | '*mca_*.so') ;; *) install -m 644 "$plugin" "$out/lib/pmix/" ;; esac
  done
done
for share in /usr/share/openmpi /usr/share/pmix "$folder"/pmix2/share/pmix; do
  case $share in *pmix) to=pmix ;; *) to=openmpi ;; esac
  for text in "$share"/help-*.txt; do
    if [ -e "$text" ]; then install -m 644 "$text" "$out/share/$to/"; fi
  done
done
: >"$out/etc/openmpi-mca-params.conf"
: >"$out/etc/pmix-mca-params.conf"

# What all of these need, and what that needs (ldd follows).
for object in "$out"/bin/* "$out"/lib/openmpi/*.so "$out"/lib/pmix/*.so; do
  ldd "$object" | sed -n 's/^\t\([^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p'
done | sort -u | grep -Ev "$system" | while read -r name path; do
  install -m 644 "$path" "$out/lib/$name"
done
strip --strip-unneeded "$out"/bin/* "$out"/lib/*.so* "$out"/lib/openmpi/*.so "$out"/lib/pmix/*.so 2>/dev/null || true

cat >"$out/run" <<'RUN'
#!/bin/sh
# Runs a program of this bundle, wherever the bundle lies.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export OPAL_PREFIX="$here" PMIX_LIBDIR="$here/lib" PMIX_PKGLIBDIR="$here/lib/pmix" PMIX_DATADIR="$here/share" PMIX_PKGDATADIR="$here/share/pmix" PMIX_SYSCONFDIR="$here/etc"
export OPAL_LIBDIR="$here/lib" OPAL_PKGLIBDIR="$here/lib/openmpi" OPAL_DATADIR="$here/share" OPAL_PKGDATADIR="$here/share/openmpi" OPAL_SYSCONFDIR="$here/etc"
export OMPI_MCA_mca_base_component_path="$here/lib/openmpi" PMIX_MCA_mca_base_component_path="$here/lib/pmix"
export OMPI_MCA_mca_base_param_files="$here/etc/openmpi-mca-params.conf" OMPI_MCA_orte_launch_agent="$here/bin/orted"
export PATH="$here/bin:$PATH" LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Without a remote shell Open MPI refuses to start even on one host; any program that exists will do for that.
command -v ssh >/dev/null || command -v rsh >/dev/null || export OMPI_MCA_plm_rsh_agent="$here/run"
exec "$@"
RUN
chmod 755 "$out/run"
du -sh "$out"
