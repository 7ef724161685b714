// Builds with a sanitizer are slower: every time limit is multiplied by this.
#pragma once

namespace tandem {

#ifdef TANDEM_SLOW_FACTOR
inline constexpr double kSlowFactor = TANDEM_SLOW_FACTOR;
#else
inline constexpr double kSlowFactor = 1;
#endif

}  // namespace tandem
