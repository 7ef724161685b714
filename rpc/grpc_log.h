// gRPC's own log and protobuf's go to spdlog's default logger: gRPC's errors as warnings, the rest as debug. Called by whatever starts
// using gRPC; the first call counts. Private to rpc.
#pragma once

namespace tandem {

void prepare_grpc();

}  // namespace tandem
