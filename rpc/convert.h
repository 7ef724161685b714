// The border: messages of the wire <-> values of ours, codes <-> codes. Pure functions; included only by rpc's own sources.
#pragma once
#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "kernels/base/error.h"
#include "rpc/ask.h"
#include "rpc/tandem.pb.h"
#include "rpc/text_side.h"

namespace tandem {

grpc::StatusCode to_wire(Code code);
Code from_wire(grpc::StatusCode code);  // what we never send becomes internal
std::optional<Code> code_named(std::string_view name);

// The status of a failed call, with google.rpc details: ErrorInfo always, BadRequest for a field, RetryInfo when retry_ms is given.
grpc::Status to_status(const Error& error, std::optional<int> retry_ms = std::nullopt);
Error from_status(const grpc::Status& status);  // where = the code's name

Ask from_wire(const v1::GenerateRequest& request);  // Errors: invalid_argument
void to_wire(const Ask& ask, v1::GenerateRequest& out);
Ask from_wire(const v1::TokenizeRequest& request);
Ask from_wire(const v1::CountTokensRequest& request);
void to_wire(const Ask& ask, v1::TokenizeRequest& out);
void to_wire(const Ask& ask, v1::CountTokensRequest& out);

void to_wire(AnswerDelta delta, v1::Delta& out);
AnswerDelta from_wire(const v1::Delta& delta);
void to_wire(const AnswerEnd& end, v1::Finished& out);
void to_wire(const AnswerEnd& end, v1::Final& out);
void from_wire(const v1::Finished& finished, AnswerEnd& out);
void from_wire(const v1::Final& final, AnswerEnd& out);

void to_wire(const TextSide& text, v1::GetModelInfoResponse& out);

}  // namespace tandem
