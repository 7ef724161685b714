// Any bytes as a step or a result, as a worker or the coordinator would receive them: a value that encodes again, or an Error.
#include <cstdlib>
#include <span>

#include "kernels/base/error.h"
#include "runtime/model/step.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    if (encode(decode_step(bytes)).size() != size) std::abort();
  } catch (const Error&) {
  }
  try {
    if (encode(decode_result(bytes)).size() != size) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
