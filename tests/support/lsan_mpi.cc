// Part of every program that links Open MPI and is built with the address sanitizer. Open MPI keeps much of what it allocates and
// unloads its plugins at its end, so that the reports name no library and nothing could be suppressed by name. What is allocated inside
// the calls that it makes at its beginning, at its end and for each message is left out of the leak report here; our own memory is not.
#define OMPI_SKIP_MPICXX 1  // the C++ bindings would need a library of their own
#include <dlfcn.h>
#include <mpi.h>
#include <sanitizer/lsan_interface.h>

using Disabled = __lsan::ScopedDisabler;

extern "C" {
int MPI_Init_thread(int* argc, char*** argv, int required, int* provided) {
  const Disabled disabled;
  const int code = PMPI_Init_thread(argc, argv, required, provided);
  dlopen("libpmix.so.2", RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);  // has threads of its own: kept, so that lsan.supp can name it
  return code;
}
int MPI_Finalize() {
  const Disabled disabled;
  return PMPI_Finalize();
}
int MPI_Comm_dup(MPI_Comm from, MPI_Comm* to) {
  const Disabled disabled;
  return PMPI_Comm_dup(from, to);
}
int MPI_Comm_split_type(MPI_Comm from, int type, int key, MPI_Info info, MPI_Comm* to) {
  const Disabled disabled;
  return PMPI_Comm_split_type(from, type, key, info, to);
}
int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm through, MPI_Request* request) {
  const Disabled disabled;
  return PMPI_Isend(data, count, type, to, tag, through, request);
}
int MPI_Irecv(void* data, int count, MPI_Datatype type, int from, int tag, MPI_Comm through, MPI_Request* request) {
  const Disabled disabled;
  return PMPI_Irecv(data, count, type, from, tag, through, request);
}
int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  const Disabled disabled;
  return PMPI_Test(request, done, status);
}
int MPI_Iprobe(int from, int tag, MPI_Comm through, int* there, MPI_Status* status) {
  const Disabled disabled;
  return PMPI_Iprobe(from, tag, through, there, status);
}
}
