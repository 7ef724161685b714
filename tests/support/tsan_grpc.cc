// Part of every program that links gRPC and is built with the thread sanitizer. gRPC and absl come from the system, built without it: it
// sees none of their locks, so every object that goes from one of our threads through gRPC to a reaction would look like a race. Here
// the calls of gRPC to absl's mutexes, and ours to gRPC, pass through functions of the same names that tell it what they keep:
//   what was done under a mutex is seen by the next thread that holds it;
//   what was done before an operation of a call was started is seen by the reactions of that call.
#include <absl/synchronization/mutex.h>
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

template <class Function>
Function* next(const std::string& name) {
  void* found = dlsym(RTLD_NEXT, name.c_str());
  if (found == nullptr) {
    std::fprintf(stderr, "no %s in any library\n", name.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(found);
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
std::string of_absl(const char* rest) {
  const std::string space = TEXT(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  return "_ZN4absl" + std::to_string(space.size()) + space + rest;
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const real = next<void(Mutex*)>(of_absl("5Mutex4LockEv"));
  real(this);
  __tsan_acquire(this);
}
bool Mutex::TryLock() {
  static auto* const real = next<bool(Mutex*)>(of_absl("5Mutex7TryLockEv"));
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}
void Mutex::Unlock() {
  static auto* const real = next<void(Mutex*)>(of_absl("5Mutex6UnlockEv"));
  __tsan_release(this);
  real(this);
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const real = next<void(CondVar*, Mutex*)>(of_absl("7CondVar4WaitEPNS0_5MutexE"));
  __tsan_release(mutex);
  real(this, mutex);
  __tsan_acquire(mutex);
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration time) {
  static auto* const real = next<bool(CondVar*, Mutex*, Duration)>(of_absl("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"));
  __tsan_release(mutex);
  const bool expired = real(this, mutex, time);
  __tsan_acquire(mutex);
  return expired;
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time time) {
  static auto* const real = next<bool(CondVar*, Mutex*, Time)>(of_absl("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"));
  __tsan_release(mutex);
  const bool expired = real(this, mutex, time);
  __tsan_acquire(mutex);
  return expired;
}

ABSL_NAMESPACE_END
}  // namespace absl

extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag, void* reserved) {
  static auto* const real = next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(call);
  return real(call, ops, count, tag, reserved);
}
extern "C" void grpc_call_unref(grpc_call* call) {  // the first that gRPC's headers do when an operation is done
  static auto* const real = next<decltype(grpc_call_unref)>("grpc_call_unref");
  __tsan_acquire(call);
  real(call);
}
