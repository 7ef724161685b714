// Load on a running server over real sockets: N streams at once, then a long prompt that arrives while they run. Prints one JSON object:
// tokens/s of all streams together, median and worst time to first token, and the longest gap between two tokens of a running stream,
// without and with the long prompt.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "rpc/client.h"

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

struct Round { double tokens_per_second = 0, ttft_median = 0, ttft_worst = 0, gap_median = 0, gap_p99 = 0, gap_worst = 0, long_ttft = 0; };

Round run(const std::string& address, int streams, int tokens, int prompt, int long_prompt, unsigned seed) {
  std::mutex mutex;
  std::vector<double> ttft, gaps;
  double total = 0, long_ttft = 0;
  const auto started = Clock::now();
  const auto ask_for = [&](int stream, int prompt_tokens, int max_tokens) {
    tandem::Ask ask;
    std::vector<int32_t> ids;
    for (int i = 0; i < prompt_tokens; ++i) ids.push_back(static_cast<int32_t>((seed * 7919u + static_cast<unsigned>(stream) * 104729u + static_cast<unsigned>(i) * 31u) % 9000 + 20));
    ask.input = ids;
    ask.temperature = 0;
    ask.max_tokens = max_tokens;
    ask.ignore_eos = true;
    return ask;
  };
  std::vector<std::thread> threads;
  for (int stream = 0; stream < streams; ++stream) {
    threads.emplace_back([&, stream] {
      tandem::Client client(address);
      const auto asked = Clock::now();
      auto last = asked;
      bool first = true;
      std::vector<double> own;
      double first_seconds = 0, count = 0;
      client.generate(ask_for(stream, prompt, tokens), [&](const tandem::AnswerDelta& delta) {
        if (delta.token_ids.empty()) return;
        if (first) {
          first_seconds = seconds_since(asked);
        } else {
          own.push_back(seconds_since(last));
        }
        first = false;
        last = Clock::now();
        count += static_cast<double>(delta.token_ids.size());
      });
      std::lock_guard lock(mutex);
      ttft.push_back(first_seconds);
      gaps.insert(gaps.end(), own.begin(), own.end());
      total += count;
    });
  }
  std::thread intruder;
  if (long_prompt > 0) {
    intruder = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(150));  // all streams decode by then
      tandem::Client client(address);
      const auto asked = Clock::now();
      bool first = true;
      client.generate(ask_for(1000, long_prompt, 2), [&](const tandem::AnswerDelta& delta) {
        if (first && !delta.token_ids.empty()) long_ttft = seconds_since(asked);
        first = false;
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double wall = seconds_since(started);
  if (intruder.joinable()) intruder.join();
  std::sort(ttft.begin(), ttft.end());
  std::sort(gaps.begin(), gaps.end());
  Round round;
  round.tokens_per_second = total / wall;
  round.ttft_median = ttft[ttft.size() / 2];
  round.ttft_worst = ttft.back();
  if (!gaps.empty()) {
    round.gap_median = gaps[gaps.size() / 2];
    round.gap_p99 = gaps[gaps.size() * 99 / 100];
    round.gap_worst = gaps.back();
  }
  round.long_ttft = long_ttft;
  return round;
}

nlohmann::ordered_json to_json(const char* name, const Round& r, int streams, int tokens) {
  return {{"case", name}, {"streams", streams}, {"tokens", tokens}, {"tokens_per_second", r.tokens_per_second}, {"ttft_median", r.ttft_median}, {"ttft_worst", r.ttft_worst},
          {"gap_median", r.gap_median}, {"gap_p99", r.gap_p99}, {"gap_worst", r.gap_worst}, {"long_ttft", r.long_ttft}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: serve_bench HOST:PORT [STREAMS=8] [TOKENS=128] [PROMPT=20] [LONG_PROMPT=344] [SEED=1]\n");
    return 2;
  }
  const auto number = [&](int i, int fallback) { return argc > i ? std::atoi(argv[i]) : fallback; };
  const int streams = number(2, 8), tokens = number(3, 128), prompt = number(4, 20), long_prompt = number(5, 344);
  const unsigned seed = static_cast<unsigned>(number(6, 1));
  try {
    run(argv[1], 1, 8, prompt, 0, seed + 1000);  // warms up
    std::printf("%s\n", to_json("streams", run(argv[1], streams, tokens, prompt, 0, seed), streams, tokens).dump().c_str());
    if (long_prompt > 0) std::printf("%s\n", to_json("streams+long", run(argv[1], streams, tokens, prompt, long_prompt, seed + 1), streams, tokens).dump().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
