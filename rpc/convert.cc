#include "rpc/convert.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "rpc/status.pb.h"

namespace tandem {
namespace {

constexpr Code kCodes[] = {Code::invalid_argument,
                           Code::not_found,
                           Code::already_exists,
                           Code::failed_precondition,
                           Code::resource_exhausted,
                           Code::unavailable,
                           Code::deadline_exceeded,
                           Code::cancelled,
                           Code::aborted,
                           Code::unauthenticated,
                           Code::internal};

// The details are google.rpc's messages under their own names.
template <class Message>
void add_detail(status::Status& to, const char* type, const Message& message) {
  auto* any = to.add_details();
  any->set_type_url(std::string("type.googleapis.com/google.rpc.") + type);
  message.SerializeToString(any->mutable_value());
}

ChatInput chat_from_wire(const v1::Chat& chat) {
  auto messages = nlohmann::ordered_json::array();
  for (const v1::Message& message : chat.messages()) {
    nlohmann::ordered_json value = {{"role", message.role()}, {"content", message.content()}};
    if (!message.extra_json().empty()) {
      const auto extra = nlohmann::ordered_json::parse(message.extra_json(), nullptr, false);
      if (!extra.is_object()) bad_input("chat.messages", "extra_json is not a JSON object");
      value.update(extra);
    }
    messages.push_back(std::move(value));
  }
  return {messages.dump(), chat.tools_json()};
}

void chat_to_wire(const ChatInput& chat, v1::Chat& out) {
  const auto messages = nlohmann::ordered_json::parse(chat.messages_json, nullptr, false);
  if (!messages.is_array()) bad_input("chat", "is not a JSON list of messages");
  for (const auto& message : messages) {
    if (!message.is_object()) bad_input("chat", "holds a message that is no object (a list of {role, content})");
    v1::Message& to = *out.add_messages();
    nlohmann::ordered_json extra = nlohmann::ordered_json::object();
    for (const auto& [key, value] : message.items()) {
      if (key == "role" && value.is_string()) {
        to.set_role(value.get<std::string>());
      } else if (key == "content" && value.is_string()) {
        to.set_content(value.get<std::string>());
      } else {
        extra[key] = value;
      }
    }
    if (!extra.empty()) to.set_extra_json(extra.dump());
  }
  out.set_tools_json(chat.tools_json);
}

// text and chat, as three messages have them
template <class Message>
void input_from_wire(const Message& from, Ask& ask) {
  ask.model = from.model();
  if (from.has_text()) ask.input = from.text();
  if (from.has_chat()) ask.input = chat_from_wire(from.chat());
}

template <class Message>
void input_to_wire(const Ask& ask, Message& out) {
  out.set_model(ask.model);
  if (const auto* text = std::get_if<std::string>(&ask.input)) out.set_text(*text);
  if (const auto* chat = std::get_if<ChatInput>(&ask.input)) chat_to_wire(*chat, *out.mutable_chat());
}

template <class T>
void assign(google::protobuf::RepeatedField<T>& to, const std::vector<T>& from) {
  to.Assign(from.begin(), from.end());
}

}  // namespace

grpc::StatusCode to_wire(Code code) {
  switch (code) {
    case Code::invalid_argument:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case Code::not_found:
      return grpc::StatusCode::NOT_FOUND;
    case Code::already_exists:
      return grpc::StatusCode::ALREADY_EXISTS;
    case Code::failed_precondition:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case Code::resource_exhausted:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case Code::unavailable:
      return grpc::StatusCode::UNAVAILABLE;
    case Code::deadline_exceeded:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Code::cancelled:
      return grpc::StatusCode::CANCELLED;
    case Code::aborted:
      return grpc::StatusCode::ABORTED;
    case Code::unauthenticated:
      return grpc::StatusCode::UNAUTHENTICATED;
    case Code::internal:
      return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::INTERNAL;
}

Code from_wire(grpc::StatusCode code) {
  for (const Code ours : kCodes) {
    if (to_wire(ours) == code) return ours;
  }
  return code == grpc::StatusCode::UNIMPLEMENTED ? Code::failed_precondition : Code::internal;
}

std::optional<Code> code_named(std::string_view text) {
  for (const Code code : kCodes) {
    if (name(code) == text) return code;
  }
  return std::nullopt;
}

grpc::Status to_status(const Error& error, std::optional<int> retry_ms) {
  status::Status details;
  details.set_code(to_wire(error.code));
  details.set_message(error.what());
  status::ErrorInfo info;
  info.set_reason(std::string(name(error.code)));
  info.set_domain("tandem");
  if (!error.where.empty()) (*info.mutable_metadata())["where"] = error.where;
  add_detail(details, "ErrorInfo", info);
  if (error.code == Code::invalid_argument) {
    status::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(error.where);
    violation->set_description(error.message);
    add_detail(details, "BadRequest", bad);
  }
  if (retry_ms) {
    status::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(*retry_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(*retry_ms % 1000 * 1000000);
    add_detail(details, "RetryInfo", retry);
  }
  return grpc::Status(to_wire(error.code), error.what(), details.SerializeAsString());
}

Error from_status(const grpc::Status& status) {
  const Code code = from_wire(status.error_code());
  return Error(code, std::string(name(code)), status.error_message().empty() ? "no message" : status.error_message());
}

Ask from_wire(const v1::GenerateRequest& request) {
  Ask ask;
  input_from_wire(request, ask);
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    ask.input = std::vector<int32_t>(ids.begin(), ids.end());
  }
  ask.request_id = request.request_id();
  const v1::Sampling& s = request.sampling();
  if (s.has_temperature()) ask.temperature = s.temperature();
  if (s.has_top_k()) ask.top_k = s.top_k();
  if (s.has_top_p()) ask.top_p = s.top_p();
  if (s.has_min_p()) ask.min_p = s.min_p();
  if (s.has_typical_p()) ask.typical_p = s.typical_p();
  if (s.has_repetition_penalty()) ask.repetition_penalty = s.repetition_penalty();
  if (s.has_presence_penalty()) ask.presence_penalty = s.presence_penalty();
  if (s.has_frequency_penalty()) ask.frequency_penalty = s.frequency_penalty();
  if (s.has_no_repeat_ngram_size()) ask.no_repeat_ngram = s.no_repeat_ngram_size();
  for (const auto& [id, value] : s.logit_bias()) ask.logit_bias.push_back({id, value});
  std::sort(ask.logit_bias.begin(), ask.logit_bias.end(), [](const TokenBias& a, const TokenBias& b) { return a.id < b.id; });
  ask.allowed_ids.assign(s.allowed_token_ids().begin(), s.allowed_token_ids().end());
  ask.choice = s.choice();
  if (s.has_seed()) ask.seed = s.seed();
  if (request.has_logprobs()) ask.logprobs = request.logprobs();
  const v1::Stopping& stopping = request.stopping();
  if (stopping.has_max_tokens()) ask.max_tokens = stopping.max_tokens();
  ask.min_tokens = stopping.min_tokens();
  ask.stop_strings.assign(stopping.stop_strings().begin(), stopping.stop_strings().end());
  ask.stop_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  ask.ignore_eos = stopping.ignore_eos();
  ask.stream = !request.has_stream() || request.stream();
  ask.priority = request.priority();
  ask.tenant = request.tenant();
  ask.resume.assign(request.resume().token_ids().begin(), request.resume().token_ids().end());
  ask.return_prompt_ids = request.return_prompt_token_ids();
  ask.echo = request.echo();
  return ask;
}

void to_wire(const Ask& ask, v1::GenerateRequest& out) {
  input_to_wire(ask, out);
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&ask.input)) assign(*out.mutable_token_ids()->mutable_ids(), *ids);
  out.set_request_id(ask.request_id);
  v1::Sampling& s = *out.mutable_sampling();
  if (ask.temperature) s.set_temperature(*ask.temperature);
  if (ask.top_k) s.set_top_k(*ask.top_k);
  if (ask.top_p) s.set_top_p(*ask.top_p);
  if (ask.min_p) s.set_min_p(*ask.min_p);
  if (ask.typical_p) s.set_typical_p(*ask.typical_p);
  if (ask.repetition_penalty) s.set_repetition_penalty(*ask.repetition_penalty);
  if (ask.presence_penalty) s.set_presence_penalty(*ask.presence_penalty);
  if (ask.frequency_penalty) s.set_frequency_penalty(*ask.frequency_penalty);
  if (ask.no_repeat_ngram) s.set_no_repeat_ngram_size(*ask.no_repeat_ngram);
  for (const TokenBias& bias : ask.logit_bias) (*s.mutable_logit_bias())[bias.id] = bias.value;
  assign(*s.mutable_allowed_token_ids(), ask.allowed_ids);
  s.set_choice(ask.choice);
  if (ask.seed) s.set_seed(*ask.seed);
  if (ask.logprobs) out.set_logprobs(*ask.logprobs);
  v1::Stopping& stopping = *out.mutable_stopping();
  if (ask.max_tokens) stopping.set_max_tokens(*ask.max_tokens);
  stopping.set_min_tokens(ask.min_tokens);
  for (const std::string& stop : ask.stop_strings) stopping.add_stop_strings(stop);
  assign(*stopping.mutable_stop_token_ids(), ask.stop_ids);
  stopping.set_ignore_eos(ask.ignore_eos);
  if (!ask.stream) out.set_stream(false);
  out.set_priority(ask.priority);
  out.set_tenant(ask.tenant);
  if (!ask.resume.empty()) assign(*out.mutable_resume()->mutable_token_ids(), ask.resume);
  out.set_return_prompt_token_ids(ask.return_prompt_ids);
  out.set_echo(ask.echo);
}

Ask from_wire(const v1::TokenizeRequest& request) {
  Ask ask;
  input_from_wire(request, ask);
  return ask;
}

Ask from_wire(const v1::CountTokensRequest& request) {
  Ask ask;
  input_from_wire(request, ask);
  return ask;
}

void to_wire(const Ask& ask, v1::TokenizeRequest& out) { input_to_wire(ask, out); }
void to_wire(const Ask& ask, v1::CountTokensRequest& out) { input_to_wire(ask, out); }

void to_wire(AnswerDelta delta, v1::Delta& out) {
  out.set_text(std::move(delta.text));
  assign(*out.mutable_token_ids(), delta.token_ids);
  for (const TokenLogprob& token : delta.logprobs) {
    v1::TokenLogprob& to = *out.add_logprobs();
    to.set_token_id(token.id);
    to.set_logprob(token.logprob);
    for (const auto& [id, logprob] : token.top) {
      v1::TopLogprob& top = *to.add_top();
      top.set_token_id(id);
      top.set_logprob(logprob);
    }
  }
}

AnswerDelta from_wire(const v1::Delta& delta) {
  AnswerDelta out;
  out.text = delta.text();
  out.token_ids.assign(delta.token_ids().begin(), delta.token_ids().end());
  for (const v1::TokenLogprob& token : delta.logprobs()) {
    TokenLogprob& to = out.logprobs.emplace_back();
    to.id = token.token_id();
    to.logprob = token.logprob();
    for (const v1::TopLogprob& top : token.top()) to.top.emplace_back(top.token_id(), top.logprob());
  }
  return out;
}

void to_wire(const AnswerEnd& end, v1::Finished& out) {
  switch (end.reason) {
    case FinishReason::none:
      out.set_reason(v1::Finished::UNSPECIFIED);
      break;
    case FinishReason::stop:
      out.set_reason(v1::Finished::STOP);
      break;
    case FinishReason::length:
      out.set_reason(v1::Finished::LENGTH);
      break;
    case FinishReason::stop_string:
      out.set_reason(v1::Finished::STOP_STRING);
      break;
    case FinishReason::cancelled:
      out.set_reason(v1::Finished::CANCELLED);
      break;
  }
  out.set_matched(end.matched);
  if (end.matched_id >= 0) out.set_matched_id(end.matched_id);
}

void to_wire(const AnswerEnd& end, v1::Final& out) {
  v1::Usage& usage = *out.mutable_usage();
  usage.set_prompt_tokens(end.prompt_tokens);
  usage.set_completion_tokens(end.completion_tokens);
  usage.set_cached_tokens(end.cached_tokens);
  v1::Timings& timings = *out.mutable_timings();
  timings.set_queue_seconds(end.timings.queue_seconds);
  timings.set_prefill_seconds(end.timings.prefill_seconds);
  timings.set_decode_seconds(end.timings.decode_seconds);
  timings.set_ttft_seconds(end.timings.ttft_seconds);
  out.set_seed(end.seed);
  out.set_compute(end.compute);
  assign(*out.mutable_prompt_token_ids(), end.prompt_ids);
}

void from_wire(const v1::Finished& finished, AnswerEnd& out) {
  switch (finished.reason()) {
    case v1::Finished::STOP:
      out.reason = FinishReason::stop;
      break;
    case v1::Finished::LENGTH:
      out.reason = FinishReason::length;
      break;
    case v1::Finished::STOP_STRING:
      out.reason = FinishReason::stop_string;
      break;
    case v1::Finished::CANCELLED:
      out.reason = FinishReason::cancelled;
      break;
    default:
      out.reason = FinishReason::none;
  }
  out.matched = finished.matched();
  out.matched_id = finished.has_matched_id() ? finished.matched_id() : -1;
}

void from_wire(const v1::Final& final, AnswerEnd& out) {
  out.prompt_tokens = final.usage().prompt_tokens();
  out.completion_tokens = final.usage().completion_tokens();
  out.cached_tokens = final.usage().cached_tokens();
  out.timings = {final.timings().queue_seconds(), final.timings().prefill_seconds(), final.timings().decode_seconds(),
                 final.timings().ttft_seconds()};
  out.seed = final.seed();
  out.compute = final.compute();
  out.prompt_ids.assign(final.prompt_token_ids().begin(), final.prompt_token_ids().end());
}

void to_wire(const TextSide& text, v1::GetModelInfoResponse& out) {
  out.set_name(text.model);
  out.set_context(text.context);
  out.set_vocab(text.vocab);
  out.set_layers(text.layers);
  out.set_family(text.family);
  out.set_format(text.format);
  out.set_compute(text.compute);
  out.set_kv_dtype(text.kv_dtype);
  out.set_digest(text.digest);
  out.set_chat(text.chat != nullptr);
  out.set_text(text.tokenizer != nullptr);
  assign(*out.mutable_stop_token_ids(), text.stop_ids);
  v1::Sampling& s = *out.mutable_defaults();
  s.set_temperature(text.defaults.temperature);
  s.set_top_k(text.defaults.top_k);
  s.set_top_p(text.defaults.top_p);
  s.set_min_p(text.defaults.min_p);
  s.set_typical_p(text.defaults.typical_p);
  s.set_no_repeat_ngram_size(text.defaults.no_repeat_ngram);
  s.set_repetition_penalty(text.defaults.repetition_penalty);
  s.set_presence_penalty(text.defaults.presence_penalty);
  s.set_frequency_penalty(text.defaults.frequency_penalty);
  out.set_max_batch(text.max_batch);
}

}  // namespace tandem
