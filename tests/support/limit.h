// Time limits of tests, longer in builds with a sanitizer.
#pragma once
#include <chrono>

#include "rpc/slow_factor.h"

namespace tandem {

inline std::chrono::milliseconds limit(int milliseconds) { return std::chrono::milliseconds(static_cast<int>(milliseconds * kSlowFactor)); }

}  // namespace tandem
