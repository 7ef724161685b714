// What rows of logits say about a text, and how far another model's are from them. Doubles; pure.
#pragma once
#include <cstdint>
#include <span>

namespace tandem {

double log_sum_exp(std::span<const float> row);
// -log softmax(row)[target].
double negative_log_likelihood(std::span<const float> row, int32_t target);
// KL(softmax(row) || softmax(other)) in nats.
double divergence(std::span<const float> row, std::span<const float> other);
bool same_best(std::span<const float> row, std::span<const float> other);

}  // namespace tandem
