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
// The same by clusters of blocks, which fold their parts without memory in between. `blocks` of a cluster (1, 2, 4, 8 or 16) for tests and
// measurements; 0: cluster_blocks(), and false as well where that leaves the call to the kernel above.
bool attend_single_rows_cluster(const Launch& how, const AttentionCall& call, bool fused, int blocks = 0);
int cluster_blocks(int64_t sequences, int64_t kv_heads, int64_t context, int multiprocessors);
bool attend_prompts_hopper(const Launch& how, const AttentionCall& call);
// Rope and append for all rows, by 16-byte pieces; false where these do not fit.
bool append_eight(const Launch& how, const AttentionCall& call);

}  // namespace tandem::cuda
