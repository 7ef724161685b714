#include "launch/ask_engine.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "kernels/base/error.h"

namespace tandem {
namespace {

class Inbox final : public RequestSink {
 public:
  void push(RequestEvent event) override {
    {
      std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    changed_.notify_one();
  }
  RequestEvent take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !events_.empty(); });
    RequestEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RequestEvent> events_;
};

double seconds_between(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

}  // namespace

LocalAnswer ask_engine(Deployment& deployment, const Ask& ask, const std::function<void(const AnswerDelta&)>& on_delta) {
  Prepared prepared = prepare(ask, deployment.text->side);
  Answer answer(deployment.text->side, prepared);
  auto inbox = std::make_shared<Inbox>();
  const std::string id = prepared.request.id;
  const Clock::time_point started = Clock::now();
  deployment.engine->submit(std::move(prepared.request), inbox);
  LocalAnswer result;
  Clock::time_point first{}, last{};
  while (!answer.done()) {
    RequestEvent event = inbox->take();
    if (!event.tokens.empty()) {
      last = Clock::now();
      if (first == Clock::time_point{}) first = last;
    }
    answer.take(std::move(event));
    if (const auto match = answer.take_match()) deployment.engine->finish(id, *match);
    if (!answer.has_delta()) continue;
    AnswerDelta delta = answer.take_delta();
    if (on_delta) on_delta(delta);
    result.all.text += delta.text;
    result.all.token_ids.insert(result.all.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    result.all.logprobs.insert(result.all.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
  }
  if (answer.error()) throw *answer.error();
  result.end = answer.end();
  if (first != Clock::time_point{}) {
    result.ttft_seconds = seconds_between(started, first);
    result.decode_seconds = seconds_between(first, last);
  }
  return result;
}

void prompt_logits(Deployment& deployment, const std::vector<int32_t>& prompt, const std::function<void(const StepLogits&)>& take) {
  static std::atomic<int> count{0};
  Request request;
  request.id = "logits-" + std::to_string(++count);
  request.prompt = prompt;
  request.all_logits = true;
  request.cache_prefix = false;
  auto inbox = std::make_shared<Inbox>();
  deployment.engine->submit(std::move(request), inbox);
  for (;;) {
    const RequestEvent event = inbox->take();
    if (event.error) throw *event.error;
    for (const StepLogits& logits : event.logits) take(logits);
    if (event.finish != FinishReason::none) return;
  }
}

}  // namespace tandem
