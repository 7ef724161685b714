// tandem: parses the command line, runs one command, and turns what went wrong into one line and an exit code.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "kernels/base/error.h"
#include "launch/commands/commands.h"
#include "launch/signals.h"
#include "sharding/comm/comms.h"

namespace {

int exit_code(tandem::Code code) { return code == tandem::Code::invalid_argument || code == tandem::Code::not_found ? 2 : 1; }

int report(const std::string& line, int code) {
  if (tandem::may_report_errors()) std::fprintf(stderr, "error: %s\n", line.c_str());
  return code;
}

// The parser's message as one of ours: the option first, then what would be right.
std::string described(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> parsed = const_cast<CLI::App&>(app).get_subcommands();
  const CLI::App& command = parsed.empty() ? app : *parsed.front();
  const std::string hint = "see tandem " + (parsed.empty() ? std::string() : command.get_name() + " ") + "--help";
  std::string text = error.what();
  constexpr std::string_view kConversion = "Could not convert: ";
  if (text.starts_with(kConversion)) {
    const size_t equals = text.find(" = ");
    const std::string name = text.substr(kConversion.size(), equals - kConversion.size());
    const CLI::Option* option = command.get_option_no_throw(name);
    const std::string type = option != nullptr ? option->get_type_name() : "";
    const std::string right = type.starts_with("FLOAT") ? "a number" : type.starts_with("UINT") ? "a whole number, 0 or more" : "a whole number of 32 bits";
    return name + ": is " + (equals == std::string::npos ? "not understood" : text.substr(equals + 3)) + " (must be " + right + ")";
  }
  if (text.starts_with("A subcommand")) return "command line: names no command (" + hint + ")";
  if (const size_t at = text.find(" is required"); at != std::string::npos) return text.substr(0, at) + ": is missing (" + hint + ")";
  if (text.ends_with(")")) return text;
  const bool names_it = text.starts_with("-") || text.starts_with("HOST:PORT: ") || text.starts_with("MODEL: ");
  return (names_it ? "" : "command line: ") + text + " (" + hint + ")";
}

int output_failed() { return report(std::string("standard output: cannot be written (") + std::strerror(errno) + ")", 1); }

}  // namespace

int main(int argc, char** argv) {
  tandem::guard_mapped_files();
  CLI::App app{"Runs language models that are too big for one device: plans, splits over ranks, serves over gRPC.", "tandem"};
  app.set_version_flag("--version", "tandem " TANDEM_VERSION);
  app.require_subcommand(1);
  app.fallthrough(false);
  std::string level = "warning";
  app.add_option("--log-level", level, "debug, info, warning, error or off")->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}))->capture_default_str();
  try {
    std::vector<tandem::Command> commands = tandem::add_commands(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& success) {  // --help, --version
      const int code = app.exit(success);
      return std::cout.flush() ? code : output_failed();
    } catch (const CLI::ParseError& error) {
      if (tandem::rank_under_mpirun() > 0) tandem::set_error_reporting(false);
      return report(described(app, error), 2);
    }
    spdlog::set_default_logger(spdlog::stderr_color_mt("tandem"));
    spdlog::set_level(spdlog::level::from_str(level == "warning" ? "warn" : level == "error" ? "err" : level));
    for (tandem::Command& command : commands) {
      if (!command.app->parsed()) continue;
      if (!command.on_every_rank && tandem::rank_under_mpirun() > 0) return 0;
      const int code = command.run();
      return std::fflush(stdout) == 0 && std::ferror(stdout) == 0 ? code : output_failed();
    }
    return report("command line: no command (see tandem --help)", 2);
  } catch (const tandem::Error& error) {
    return report(error.what(), exit_code(error.code));
  } catch (const std::bad_alloc&) {
    return report("memory: is exhausted", 1);
  } catch (const std::exception& error) {
    return report(std::string("internal: ") + error.what(), 1);
  }
}
