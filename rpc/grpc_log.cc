#include "rpc/grpc_log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/spdlog.h>

#include <cstring>
#include <mutex>

namespace tandem {
namespace {

void log(gpr_log_func_args* args) {
  const char* file = std::strrchr(args->file, '/');
  file = file != nullptr ? file + 1 : args->file;
  const auto level = args->severity == GPR_LOG_SEVERITY_ERROR ? spdlog::level::warn : spdlog::level::debug;
  spdlog::log(level, "grpc {}:{}: {}", file, args->line, args->message);
}

void log_protobuf(google::protobuf::LogLevel, const char* file, int line, const std::string& message) {  // strangers' bytes cause these
  spdlog::debug("protobuf {}:{}: {}", file, line, message);
}

}  // namespace

void prepare_grpc() {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(log);
    google::protobuf::SetLogHandler(log_protobuf);
    gpr_set_log_verbosity(spdlog::should_log(spdlog::level::debug) ? GPR_LOG_SEVERITY_INFO : GPR_LOG_SEVERITY_ERROR);
  });
}

}  // namespace tandem
