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
      return app.exit(success);
    } catch (const CLI::ParseError& error) {
      if (tandem::rank_under_mpirun() > 0) tandem::set_error_reporting(false);
      return report("command line: " + std::string(error.what()) + " (see tandem --help)", 2);
    }
    spdlog::set_default_logger(spdlog::stderr_color_mt("tandem"));
    spdlog::set_level(spdlog::level::from_str(level == "warning" ? "warn" : level == "error" ? "err" : level));
    for (tandem::Command& command : commands) {
      if (command.app->parsed()) return command.run();
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
