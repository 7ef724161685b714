#include "runtime/text/tokenizer_parts.h"
#include "kernels/base/error.h"
namespace tandem {
std::unique_ptr<Tokenizer> Tokenizer::from_gguf(GgufVocabulary, const std::string& where) { bad_input(where, "a GGUF vocabulary is not read yet"); }
}  // namespace tandem
