// Help that fits one screen: a line an option; options of the group kMore by name only, which `--help-all` explains.
#pragma once
#include <CLI/CLI.hpp>

namespace tandem {

constexpr const char* kMore = "More";

// For `app` and every command added after this.
void use_one_screen_help(CLI::App& app);

}  // namespace tandem
