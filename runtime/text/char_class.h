// Classes of characters as the Hugging Face tokenizers library sees them (Rust's char methods and the regex crate). Pure functions.
#pragma once
#include <string>
#include <string_view>

namespace tandem {

bool is_space(char32_t c);        // White_Space
bool is_numeric(char32_t c);      // Nd, Nl, No
bool is_word(char32_t c);         // \w: Alphabetic, M, Nd, Pc, Join_Control
bool is_punctuation(char32_t c);  // ASCII punctuation and P
bool is_mark(char32_t c);         // M
bool is_accent(char32_t c);       // Mn
bool is_cjk(char32_t c);          // the ideograph blocks that BERT sets apart
bool is_control(char32_t c);      // C, without tab, line feed and carriage return
void append_lower(std::string& out, char32_t c);
void append_upper(std::string& out, char32_t c);

}  // namespace tandem
