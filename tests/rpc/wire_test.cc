// What other people's clients see: statuses, metadata, health, reflection, and what a client that does not read does to others.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <thread>

#include "rpc/convert.h"
#include "rpc/health.grpc.pb.h"
#include "rpc/status.pb.h"
#include "rpc/tandem.grpc.pb.h"
#include "tests/rpc/served.h"

namespace tandem {
namespace {

namespace health = grpc::health::v1;
using ::testing::HasSubstr;

std::shared_ptr<grpc::Channel> channel(const Served& s, grpc::ChannelArguments arguments = {}) {
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(s.server->address(), grpc::InsecureChannelCredentials(), arguments);
}

v1::GenerateRequest request(const std::string& text, int32_t tokens) {
  v1::GenerateRequest out;
  out.set_text(text);
  out.mutable_stopping()->set_max_tokens(tokens);
  return out;
}

std::string trailer(const grpc::ClientContext& context, const char* key) {
  const auto found = context.GetServerTrailingMetadata().find(key);
  return found == context.GetServerTrailingMetadata().end() ? "" : std::string(found->second.data(), found->second.size());
}

TEST(Wire, EventsAreNumberedAndTheFinalOneIsLast) {
  Served s(toy_engine(), slow_steps(1));
  s.start();
  const auto stub = v1::Inference::NewStub(channel(s));
  grpc::ClientContext context;
  auto asked = request("count", 30);
  asked.set_request_id("my id");
  const auto reader = stub->Generate(&context, asked);
  v1::GenerateEvent event;
  uint64_t last = 0;
  int finals = 0, tokens = 0;
  while (reader->Read(&event)) {
    EXPECT_EQ(event.sequence(), ++last);
    EXPECT_EQ(event.request_id(), "my id");
    EXPECT_EQ(finals, 0);
    tokens += event.delta().token_ids_size();
    finals += event.has_final();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(finals, 1);
  EXPECT_EQ(tokens, 30);
  EXPECT_EQ(event.final().usage().completion_tokens(), 30);
  EXPECT_GT(event.final().timings().decode_seconds(), 0);
  EXPECT_EQ(trailer(context, "x-request-id"), "my id");
  EXPECT_EQ(trailer(context, "x-completion-tokens"), "30");
}

TEST(Wire, RefusalsAreTrailersOnlyAndSayWhenToComeBack) {
  Served s;  // never started: it loads for ever
  const auto stub = v1::Inference::NewStub(channel(s));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request("early", 3));
  v1::GenerateEvent event;
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(context.GetServerInitialMetadata().empty());
  EXPECT_EQ(trailer(context, "grpc-retry-pushback-ms"), "1000");
  status::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), status.error_code());
  ASSERT_EQ(details.details_size(), 2);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.ErrorInfo");
  EXPECT_EQ(details.details(1).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  status::RetryInfo retry;
  ASSERT_TRUE(retry.ParseFromString(details.details(1).value()));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
}

TEST(Wire, BadFieldsAreInTheDetails) {
  Served s;
  s.start();
  const auto stub = v1::Inference::NewStub(channel(s));
  grpc::ClientContext context;
  auto asked = request("hot", 3);
  asked.mutable_sampling()->set_temperature(-1);
  const auto reader = stub->Generate(&context, asked);
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(trailer(context, "grpc-retry-pushback-ms"), "");
  status::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  status::BadRequest bad;
  ASSERT_EQ(details.details_size(), 2);
  ASSERT_TRUE(bad.ParseFromString(details.details(1).value()));
  EXPECT_EQ(bad.field_violations(0).field(), "sampling.temperature");
}

TEST(Wire, DeadlineIsImposedOnThoseWithout) {
  ServerOptions options;
  options.default_deadline_seconds = 0.3;
  Served s(toy_engine(), slow_steps(10), options);
  s.start();
  const auto stub = v1::Inference::NewStub(channel(s));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request("no deadline", 400));
  v1::GenerateEvent event;
  int tokens = 0;
  while (reader->Read(&event)) tokens += event.delta().token_ids_size();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_GT(tokens, 0);
  EXPECT_EQ(trailer(context, "x-completion-tokens"), std::to_string(tokens));
}

TEST(Wire, CodesGoThereAndBack) {
  for (int i = 0; i <= static_cast<int>(Code::internal); ++i) {
    const Code code = static_cast<Code>(i);
    EXPECT_EQ(from_wire(to_wire(code)), code);
    EXPECT_EQ(code_named(name(code)), code);
  }
  EXPECT_EQ(from_wire(grpc::StatusCode::DATA_LOSS), Code::internal);
  EXPECT_EQ(code_named("NOTHING"), std::nullopt);
}

TEST(Wire, AsksGoThereAndBack) {
  Ask ask;
  ask.request_id = "i";
  ask.model = "m";
  ask.input = ChatInput{R"([{"role":"user","content":"hi","name":"x"},{"role":"assistant","content":null,"tool_calls":[1]}])", "[2]"};
  ask.temperature = 0.5f;
  ask.top_p = 0.25f;
  ask.min_p = 0.125f;
  ask.typical_p = 0.75f;
  ask.repetition_penalty = 1.5f;
  ask.presence_penalty = -1;
  ask.frequency_penalty = 2;
  ask.top_k = 7;
  ask.seed = UINT64_MAX;
  ask.logprobs = 0;
  ask.max_tokens = 9;
  ask.min_tokens = 2;
  ask.stop_strings = {"a", "b"};
  ask.stop_ids = {3, 4};
  ask.ignore_eos = true;
  ask.stream = false;
  ask.priority = -2;
  ask.tenant = "t";
  ask.resume = {1, 2};
  ask.return_prompt_ids = true;
  ask.no_repeat_ngram = 3;
  ask.logit_bias = {{1, -2.5f}, {7, 4}};
  ask.allowed_ids = {7, 8};
  ask.choice = 2;
  ask.echo = true;
  v1::GenerateRequest once, twice;
  to_wire(ask, once);
  const Ask back = from_wire(once);
  to_wire(back, twice);
  EXPECT_EQ(once.SerializeAsString(), twice.SerializeAsString());
  EXPECT_EQ(back.logprobs, 0);
  EXPECT_EQ(back.stream, false);
  EXPECT_EQ(back.seed, UINT64_MAX);
  EXPECT_EQ(back.no_repeat_ngram, 3);
  ASSERT_EQ(back.logit_bias.size(), 2u);
  EXPECT_EQ(back.logit_bias[0].value, -2.5f);
  EXPECT_EQ(back.allowed_ids, ask.allowed_ids);
  EXPECT_EQ(back.choice, 2u);
  EXPECT_TRUE(back.echo);
  const auto messages = nlohmann::json::parse(std::get<ChatInput>(back.input).messages_json);
  EXPECT_EQ(messages[0]["name"], "x");
  EXPECT_TRUE(messages[1]["content"].is_null());
}

TEST(Health, WatchIsToldOfEveryChange) {
  Served s;
  const auto stub = health::Health::NewStub(channel(s));
  grpc::ClientContext context;
  health::HealthCheckRequest asked;
  asked.set_service("model/toy");
  const auto watch = stub->Watch(&context, asked);
  health::HealthCheckResponse said;
  ASSERT_TRUE(watch->Read(&said));
  EXPECT_EQ(said.status(), health::HealthCheckResponse::NOT_SERVING);
  s.start();
  ASSERT_TRUE(watch->Read(&said));
  EXPECT_EQ(said.status(), health::HealthCheckResponse::SERVING);
  std::jthread stopping([&] { s.server->stop(5); });
  ASSERT_TRUE(watch->Read(&said));
  EXPECT_EQ(said.status(), health::HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&said));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(Health, UnknownNames) {
  Served s;
  const auto stub = health::Health::NewStub(channel(s));
  health::HealthCheckRequest asked;
  health::HealthCheckResponse said;
  for (const char* name : {"", "tandem.v1.Inference", "tandem.v1.Control", "grpc.health.v1.Health", "model/toy", "stage/0"}) {
    grpc::ClientContext context;
    asked.set_service(name);
    EXPECT_TRUE(stub->Check(&context, asked, &said).ok()) << name;
    EXPECT_EQ(said.status(), health::HealthCheckResponse::NOT_SERVING) << name;
  }
  grpc::ClientContext context, watching;
  asked.set_service("liveness");
  EXPECT_TRUE(stub->Check(&context, asked, &said).ok());
  EXPECT_EQ(said.status(), health::HealthCheckResponse::SERVING);
  asked.set_service("nonsense");
  grpc::ClientContext unknown;
  EXPECT_EQ(stub->Check(&unknown, asked, &said).error_code(), grpc::StatusCode::NOT_FOUND);
  const auto watch = stub->Watch(&watching, asked);
  ASSERT_TRUE(watch->Read(&said));
  EXPECT_EQ(said.status(), health::HealthCheckResponse::SERVICE_UNKNOWN);
  watching.TryCancel();
}

TEST(Wire, ReflectionListsTheServices) {
  Served s;
  grpc::GenericStub stub(channel(s));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice list_services(std::string("\x3a\x00", 2));
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  EXPECT_THAT(bytes, HasSubstr("tandem.v1.Inference"));
  EXPECT_THAT(bytes, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

TEST(Wire, ChannelzAnswers) {
  Served s;
  grpc::GenericStub stub(channel(s));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const grpc::Slice nothing{std::string()};
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.channelz.v1.Channelz/GetServers", grpc::ByteBuffer(&nothing, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(answer.Length(), 0u);
}

TEST(Wire, PlanCapacityIsAskedOfLaunch) {
  {
    Served s;
    grpc::ClientContext context;
    v1::PlanCapacityResponse said;
    EXPECT_EQ(v1::Control::NewStub(channel(s))->PlanCapacity(&context, {}, &said).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  ServerInfo info;
  info.plan_capacity = [](const PlanQuestion& question) -> PlanAnswer {
    if (question.context < 0) bad_input("context", "is negative");
    return {"fits", "{\"gpus\":\"" + question.gpus + "\"}"};
  };
  Served s(toy_engine(), {}, {}, info);
  grpc::ClientContext context, again;
  v1::PlanCapacityRequest asked;
  asked.set_gpus("2xrtx3090");
  v1::PlanCapacityResponse said;
  EXPECT_TRUE(v1::Control::NewStub(channel(s))->PlanCapacity(&context, asked, &said).ok());
  EXPECT_EQ(said.plan_json(), R"({"gpus":"2xrtx3090"})");
  asked.set_context(-1);
  EXPECT_EQ(v1::Control::NewStub(channel(s))->PlanCapacity(&again, asked, &said).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(Wire, ReaderThatDoesNotReadHoldsUpNobody) {
  ServerOptions options;
  options.slow_reader_seconds = 1;
  EngineOptions engine = toy_engine();
  engine.context = 65536;  // more than what a connection holds on its way
  engine.kv_pages = {5000};
  Served s(engine, {}, options);
  s.start();
  grpc::ChannelArguments narrow;  // takes no more than it must
  narrow.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  narrow.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 65535);
  const auto stub = v1::Inference::NewStub(channel(s, narrow));
  grpc::ClientContext context;
  auto asked = request("endless", 60000);
  asked.set_request_id(std::string(256, 'x'));
  asked.set_logprobs(0);
  const auto reader = stub->Generate(&context, asked);
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));  // and no more
  const Heard heard = s.hear(ask_text("another", 200));
  EXPECT_EQ(heard.end.completion_tokens, 200);
  for (int i = 0; i < 1000 && s.server->slow_readers() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(s.server->slow_readers(), 1u);
  EXPECT_TRUE(s.idle());
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_FALSE(status.ok());
  std::printf("[ figures  ] the slow reader saw %s\n", std::string(name(from_wire(status.error_code()))).c_str());
}

TEST(Wire, GarbageDoesNoHarm) {
  Served s;
  s.start();
  grpc::GenericStub stub(channel(s));
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff\xff"), std::string("\x1a\x02\xff\xfe", 4), std::string(1 << 20, '\x0a'), std::string()}) {
    grpc::CompletionQueue queue;
    grpc::ClientContext context;
    const auto call = stub.PrepareCall(&context, "/tandem.v1.Inference/Generate", &queue);
    void* tag = nullptr;
    bool ok = false;
    call->StartCall(nullptr);
    queue.Next(&tag, &ok);
    const grpc::Slice slice(bytes);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    queue.Next(&tag, &ok);
    grpc::Status status;
    call->Finish(&status, nullptr);
    queue.Next(&tag, &ok);
    EXPECT_FALSE(status.ok());
  }
  EXPECT_EQ(s.hear(ask_text("alive", 5)).end.completion_tokens, 5);
  EXPECT_TRUE(s.idle());
}

}  // namespace
}  // namespace tandem
