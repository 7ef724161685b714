// Asks an engine in this process: what `generate`, `bench` and `logits` do without a server.
#pragma once
#include <functional>
#include <vector>

#include "launch/wiring.h"
#include "rpc/answer.h"

namespace tandem {

struct LocalAnswer {
  AnswerEnd end;
  AnswerDelta all;  // everything the deltas said, together
  double ttft_seconds = 0, decode_seconds = 0;  // seen from here
};

// Blocks until the answer ends. on_delta (may be empty) is called on this thread. Errors: prepare's, the engine's, the stream's.
LocalAnswer ask_engine(Deployment& deployment, const Ask& ask, const std::function<void(const AnswerDelta&)>& on_delta);

// Logits of every prompt row, [rows, vocab] in order, handed over piece by piece. Errors: as above.
void prompt_logits(Deployment& deployment, const std::vector<int32_t>& prompt, const std::function<void(const StepLogits&)>& take);

}  // namespace tandem
