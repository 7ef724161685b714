// The files of presets/, as the build embeds them: config.json of known models (shapes only) plus "repositories", the full ids that mean
// the same. Values only.
#pragma once
#include <span>
#include <string_view>

namespace tandem {

struct PresetFile { std::string_view name, text; };  // "llama-3.1-8b", JSON
std::span<const PresetFile> preset_files();          // by name, ascending

}  // namespace tandem
