// The parts of attention.h's functions, one a file.
#pragma once
#include "kernels/cuda/attention.h"

namespace tandem::cuda {

// Sequences of one row. fused: rope and append on the way (then every sequence has one row); else they have happened, and sequences of
// more rows are passed over.
void attend_single_rows(const Launch& how, const AttentionCall& call, bool fused);
// Sequences of more than one row; rope and append have happened.
void attend_prompts(const Launch& how, const AttentionCall& call);
// The same by the matrix unit; false, and nothing launched, where it does not do the shape, the types or the device.
bool attend_single_rows_mma(const Launch& how, const AttentionCall& call, bool fused);
bool attend_prompts_hopper(const Launch& how, const AttentionCall& call);
// Rope and append for all rows, by 16-byte pieces; false where these do not fit.
bool append_eight(const Launch& how, const AttentionCall& call);

}  // namespace tandem::cuda
