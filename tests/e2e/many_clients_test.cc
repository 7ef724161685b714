// Many clients at once against a server of two processes: lengths, cancels, deadlines and readers of every kind.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <map>

#include "rpc/tandem.grpc.pb.h"
#include "tests/e2e/serving.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

constexpr double kLong = 120 * kSlowFactor;

// A client that reads only when told, over a connection whose windows are small, so that the server's writes do get stuck.
class LazyReader {
 public:
  LazyReader(const std::string& address, std::vector<int32_t> ids, int32_t max_tokens) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16);
    stub_ = v1::Inference::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(max_tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    request.set_logprobs(20);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(static_cast<int>(kLong)));
    reader_ = stub_->Generate(&context_, request);
    reader_->WaitForInitialMetadata();  // the first token is there
  }
  void read_all() {
    v1::GenerateEvent event;
    for (uint64_t sequence = 1; reader_->Read(&event); ++sequence) {
      gapless = gapless && event.sequence() == sequence;
      ids.insert(ids.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
      finals += event.has_final();
    }
    status = reader_->Finish();
  }

  std::vector<int32_t> ids;
  bool gapless = true;
  int finals = 0;
  grpc::Status status;

 private:
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader_;
};

struct Question {
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;
};
constexpr int kQuestions = 16;
Question question(int i) {  // one of kQuestions, of every length: a token, parts of a page, several pages
  constexpr int kPrompt[] = {1, 3, 17, 63, 64, 65, 100, 150}, kAnswer[] = {1, 2, 30, 64, 90, 7, 100, 50};
  return {some_ids(kPrompt[i % 8], static_cast<uint32_t>(i % kQuestions)), kAnswer[(i / 2) % 8]};
}

// 64 clients; returns how many answers were compared.
int one_round(const Serving& server, const std::map<int, std::vector<int32_t>>& alone) {
  constexpr int kClients = 64;
  std::vector<std::unique_ptr<LazyReader>> lazy;
  std::vector<std::unique_ptr<Stream>> streams;
  const auto shared = std::make_shared<Client>(server.address, ClientOptions{.connect_seconds = 10 * kSlowFactor});
  for (int i = 0; i < kClients; ++i) {
    const Question q = question(i);
    Stream::Options options;
    if (i % 2 == 1) options.client = shared;  // half of them over one connection
    if (i % 8 == 3) options.cancel_after = 1;
    if (i % 8 == 5) options.deadline = i % 16 == 5 ? 0.002 : 0.05 * kSlowFactor;
    if (i % 8 == 6) options.pause_after = 1;  // stops reading; the windows are large enough for the rest
    streams.push_back(std::make_unique<Stream>(server.address, ask_ids(q.prompt, i % 8 == 3 ? 100 : q.max_tokens), options));
    if (i % 16 == 7) lazy.push_back(std::make_unique<LazyReader>(server.address, q.prompt, 100));
  }
  int compared = 0;
  const auto check = [&](int i) {
    SCOPED_TRACE("client " + std::to_string(i));
    ASSERT_TRUE(streams[static_cast<size_t>(i)]->wait_end(kLong));
    const Ended& ended = streams[static_cast<size_t>(i)]->ended();
    EXPECT_EQ(ended.ends, 1);
    if (i % 8 == 3) {
      // The answer may have been complete before the cancel got there.
      EXPECT_TRUE(!ended.error || *ended.error == Code::cancelled) << ended.message;
      return;
    }
    if (i % 8 == 5) {
      EXPECT_TRUE(!ended.error || *ended.error == Code::deadline_exceeded) << ended.message;
      if (i % 16 == 5) {
        EXPECT_TRUE(ended.error.has_value()) << "in 2 ms?";
      }
      if (ended.error) return;
    }
    ASSERT_FALSE(ended.error) << ended.message;
    EXPECT_EQ(ended.end.reason, FinishReason::length);
    EXPECT_EQ(ended.end.completion_tokens, static_cast<int32_t>(ended.ids.size()));
    EXPECT_EQ(ended.ids, alone.at(i % kQuestions));
    ++compared;
  };
  for (int i = 0; i < kClients; ++i) {
    if (i % 8 != 6) check(i);  // those who read are not held up by those who do not
  }
  // And the model is done with the others as well: their text waits outside of it.
  EXPECT_TRUE(server.wait_idle(kLong));
  for (int i = 6; i < kClients; i += 8) {
    streams[static_cast<size_t>(i)]->resume();
    check(i);
  }
  for (auto& reader : lazy) {
    reader->read_all();
    EXPECT_TRUE(reader->status.ok()) << reader->status.error_message();
    EXPECT_TRUE(reader->gapless);
    EXPECT_EQ(reader->finals, 1);
    EXPECT_EQ(reader->ids.size(), 100u);
  }
  return compared;
}

std::map<int, std::vector<int32_t>> answers_alone(const Serving& server) {
  std::map<int, std::vector<int32_t>> alone;
  for (int i = 0; i < kQuestions; ++i) {
    const Question q = question(i);
    Stream stream(server.address, ask_ids(q.prompt, q.max_tokens));
    const Ended& ended = stream.ended();
    EXPECT_FALSE(ended.error) << ended.message;
    alone[i] = ended.ids;
  }
  return alone;
}

TEST(ManyClients, OfEveryKindAtOnce) {
  // The address sanitizer keeps what was freed, up to 256 MiB a process: here but little, or memory would seem to grow.
  Serving server(Way::own_mpirun, 2, kLlama, {"--max-batch", "16", "--max-queue", "256"},
                 {"ASAN_OPTIONS=quarantine_size_mb=1:thread_local_quarantine_size_kb=16"});
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const Load before = server.load();
  EXPECT_EQ(before.kv_pages_free, before.kv_pages_total);
  const auto alone = answers_alone(server);

  const pid_t coordinator = server.coordinator();
  const std::vector<pid_t> ranks = server.ranks();
  const auto memory = [&] {
    uint64_t bytes = resident_bytes(coordinator);
    for (const pid_t pid : ranks) bytes += resident_bytes(pid);
    return bytes;
  };
  std::vector<uint64_t> after;
  for (int round = 0; round < 3; ++round) {
    EXPECT_GE(one_round(server, alone), 40);
    EXPECT_TRUE(server.wait_idle());
    after.push_back(memory());
  }
  const Load load = server.load();
  EXPECT_EQ(load.kv_pages_free, before.kv_pages_total);
  // The first round fills pools and caches; from then on it stays flat.
  constexpr double kMiB = 1 << 20;
  EXPECT_LT(after[2], after[0] + 8 * kMiB) << "MiB after each round: " << after[0] / kMiB << " " << after[1] / kMiB << " "
                                           << after[2] / kMiB;
  EXPECT_EQ(server.ranks(), ranks);  // nothing was restarted on the way
}

TEST(ManyClients, FullQueueRefusesBeforeHeaders) {
  Serving server(Way::own_mpirun, 2, kLlama, {"--max-batch", "1", "--max-queue", "2"});
  ASSERT_TRUE(server.wait_serving()) << server.process.err();
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(server.address, grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request;
  for (const int32_t id : {1, 2, 3}) request.mutable_token_ids()->add_ids(id);
  request.mutable_stopping()->set_max_tokens(4);

  bool refused = false;
  for (int attempt = 0; attempt < 20 && !refused; ++attempt) {  // until three are open at the moment of asking
    std::vector<std::unique_ptr<Stream>> busy;
    for (int i = 0; i < 3; ++i) busy.push_back(std::make_unique<Stream>(server.address, ask_ids(some_ids(3, 1), 250)));
    if (!server.wait_load([](const Load& load) { return load.running + load.waiting == 3; }, 0.5 * kSlowFactor)) continue;
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, request);
    v1::GenerateEvent event;
    const bool any = reader->Read(&event);
    while (any && reader->Read(&event)) {
    }
    const grpc::Status status = reader->Finish();
    if (status.ok()) continue;
    refused = true;
    EXPECT_FALSE(any);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(status.error_message(), HasSubstr("queue is full"));
    EXPECT_TRUE(context.GetServerInitialMetadata().empty());
    EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  }
  EXPECT_TRUE(refused);

  // Because nothing was sent before the refusal, a client with the retry policy (four attempts) never sees it.
  bool retried = false;
  for (int attempt = 0; attempt < 20 && !retried; ++attempt) {
    ASSERT_TRUE(server.wait_idle());
    std::vector<std::unique_ptr<Stream>> busy;
    for (int i = 0; i < 3; ++i) busy.push_back(std::make_unique<Stream>(server.address, ask_ids(some_ids(3, 1), 250)));
    if (!server.wait_load([](const Load& load) { return load.running + load.waiting == 3; }, 0.5 * kSlowFactor)) continue;
    Stream::Options options;
    options.retry = true;
    Stream patient(server.address, ask_ids({1, 2, 3}, 4), options);
    ASSERT_TRUE(patient.wait_end(60 * kSlowFactor));
    // Refused at first if the three were still open when it came, which the time tells: the pushback is 50 ms at least. When the queue
    // stays full for longer than four attempts, the last refusal is what the user gets.
    if (patient.ended().error) {
      EXPECT_EQ(*patient.ended().error, Code::resource_exhausted) << patient.ended().message;
    }
    retried = !patient.ended().error && patient.ended().seconds >= 0.05;
    for (auto& stream : busy) EXPECT_FALSE(stream->ended().error);  // to their end: the server learns from it how long answers take
  }
  EXPECT_TRUE(retried);
}

}  // namespace
}  // namespace tandem::e2e
