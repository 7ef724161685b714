// How far a result may be from its oracle, by what was computed: the only place where tolerances stand. Relative to the sum of the
// magnitudes that were added up, unless said otherwise.
#pragma once

namespace tandem::test {

// fp32 activations: weights are exact, sums in fp32 with chains of 32.
constexpr double kLinearFp32 = 1e-6;
// int8 activations against the same quantized activations: exact within 32 columns, then an fp32 chain over the blocks.
constexpr double kLinearInt8 = 1e-6;

}  // namespace tandem::test
