// The CPU backend: programs are interpreted by a team of threads that the backend owns. One rank's thread calls place(), forward() and
// sample() of a backend and its executables, one at a time; sizes and layouts may be asked for from anywhere.
#pragma once
#include <memory>

#include "kernels/cpu/linear.h"
#include "kernels/program/backend.h"

namespace tandem::cpu {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr bool kPoisonDeadValues = true;
#else
constexpr bool kPoisonDeadValues = false;
#endif

// threads: 1 to 64. poison: values that no record reads any more are overwritten with NaN.
std::unique_ptr<Backend> make_cpu_backend(int threads, Features features = detect_features(), bool poison = kPoisonDeadValues);

}  // namespace tandem::cpu
