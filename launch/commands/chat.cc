// tandem chat: a conversation with a server, in a terminal or through pipes (a line is a message).
#include <cstdio>
#include <iostream>
#include <mutex>

#include "launch/commands/commands.h"
#include "launch/options.h"
#include "launch/remote.h"
#include "launch/signals.h"
#include "launch/terminal.h"
#include "rpc/client.h"

namespace tandem {
namespace {

struct Options {
  RemoteOptions remote;
  std::string system;
  Ask ask;
};

// Which answer Ctrl-C stops; set on the main thread, read on the signal's.
class Interrupt {
 public:
  void watch(Client::Call* call) {
    std::lock_guard lock(mutex_);
    call_ = call;
  }
  void operator()() {
    std::lock_guard lock(mutex_);
    if (call_) {
      call_->cancel();
    } else if (is_terminal(stdin)) {
      std::fprintf(stderr, "\n(/exit or Ctrl-D ends)\n> ");
    } else {
      std::_Exit(130);
    }
  }

 private:
  std::mutex mutex_;
  Client::Call* call_ = nullptr;
};

class Conversation {
 public:
  Conversation(const Options& options, Interrupt& interrupt)
      : options_(options), interrupt_(interrupt), client_(options.remote.address, {.connect_seconds = options.remote.connect_seconds}) {
    clear();
  }

  void clear() {
    messages_ = nlohmann::ordered_json::array();
    if (!options_.system.empty()) messages_.push_back({{"role", "system"}, {"content", options_.system}});
  }

  // Streams the answer to stdout; a stopped one counts as far as it came. Errors: the server's; the message is then forgotten.
  void say(const std::string& text) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    Ask ask = options_.ask;
    ask.input = ChatInput{messages_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), ""};
    std::string answer;
    Client::Call call;
    interrupt_.watch(&call);
    try {
      client_.generate(ask, [&answer](const AnswerDelta& delta) {
        answer += delta.text;
        show_now(stdout, delta.text);
      }, options_.remote.deadline_seconds, &call);
    } catch (const Error& error) {
      interrupt_.watch(nullptr);
      if (!answer.empty()) write_now(stdout, "\n");
      if (error.code != Code::cancelled) {
        messages_.erase(messages_.size() - 1);
        throw;
      }
      std::fprintf(stderr, "(stopped)\n");
      messages_.push_back({{"role", "assistant"}, {"content", answer}});
      return;
    }
    interrupt_.watch(nullptr);
    write_now(stdout, "\n");
    messages_.push_back({{"role", "assistant"}, {"content", answer}});
  }

  std::string model() { return client_.model().name; }

 private:
  const Options& options_;
  Interrupt& interrupt_;
  Client client_;
  nlohmann::ordered_json messages_;
};

int chat(const Options& o) {
  check_address(o.remote);
  auto interrupt = std::make_shared<Interrupt>();
  on_interrupt_signal([interrupt] { (*interrupt)(); });
  return report_status([&] {
    Conversation conversation(o, *interrupt);
    const bool person = is_terminal(stdin);
    if (person) std::fprintf(stderr, "%s at %s. Ctrl-C stops an answer, /clear forgets, /exit ends.\n", conversation.model().c_str(), o.remote.address.c_str());
    std::string line;
    while (true) {
      if (person) std::fprintf(stderr, "> ");
      if (!std::getline(std::cin, line) || line == "/exit") break;
      if (line == "/clear") {
        conversation.clear();
      } else if (line.starts_with("/") && person && line.find(' ') == std::string::npos) {
        std::fprintf(stderr, "(%s is not a command: /clear, /exit)\n", line.c_str());
      } else if (line.find_first_not_of(" \t\r") != std::string::npos) {
        try {
          conversation.say(line);
        } catch (const Error& error) {
          if (!person) throw;
          print_status(error);
        }
      }
    }
    if (person) std::fprintf(stderr, "\n");
    return 0;
  });
}

}  // namespace

Command add_chat(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("chat", "A conversation with a server; reads lines, /clear forgets, /exit ends");
  add_options(*command, options->remote);
  command->add_option("--system", options->system, "system message");
  add_sampling_options(*command, options->ask);
  command->footer("Example: tandem chat 127.0.0.1:8001 --system 'You are brief.'");
  return {command, [options] { return chat(*options); }};
}

}  // namespace tandem
