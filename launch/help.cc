#include "launch/help.h"

namespace tandem {
namespace {

constexpr size_t kWidth = 110;

class OneScreenHelp : public CLI::Formatter {
 public:
  OneScreenHelp() { column_width(30); }

  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    if (mode == CLI::AppFormatMode::Sub) return make_expanded(app);
    const bool all = mode == CLI::AppFormatMode::All;
    std::string out = make_description(app) + "\n" + make_usage(app, name) + make_positionals(app);
    for (const std::string& group : app->get_groups()) {
      const std::vector<const CLI::Option*> options = app->get_options([&](const CLI::Option* option) {
        return option->get_group() == group && option->nonpositional();
      });
      if (group.empty() || options.empty()) continue;
      out += group == kMore && !all ? names(options) : make_group(group, false, options);
    }
    out += make_subcommands(app, mode);
    const std::string footer = make_footer(app);
    return footer.empty() ? out : out + "\n" + footer;
  }

  std::string make_description(const CLI::App* app) const override { return app->get_description() + "\n"; }

  std::string make_positionals(const CLI::App* app) const override {
    std::string out;
    for (const CLI::Option* option : app->get_options([](const CLI::Option* o) { return o->get_positional(); })) out += make_option(option, true);
    return out;
  }

  // The type and the default; what is allowed stands in the description.
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0 || option->get_positional()) return "";
    const std::string type = option->get_type_name();
    std::string out = " " + type.substr(0, type.find_first_of(":["));
    if (!option->get_default_str().empty()) out += "=" + option->get_default_str();
    return out;
  }

 private:
  static std::string names(const std::vector<const CLI::Option*>& options) {
    std::string out = "\nMore (--help-all explains them):\n", line = " ";
    for (const CLI::Option* option : options) {
      const std::string name = " " + option->get_name(false, false);
      if (line.size() + name.size() > kWidth) {
        out += line + "\n";
        line = " ";
      }
      line += name;
    }
    return out + line + "\n";
  }
};

}  // namespace

void use_one_screen_help(CLI::App& app) {
  app.formatter(std::make_shared<OneScreenHelp>());
  app.set_help_all_flag("--help-all", "every option explained");
}

}  // namespace tandem
