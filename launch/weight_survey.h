// Every weight of a model looked at, on all cores: its numbers, and what formats do to them. As tables for people and as JSON.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/model/weight_error.h"

namespace tandem {

struct SurveyedWeight {
  WeightId id = kNoWeight;
  std::vector<const Format*> formats;  // to be tried; null: does not apply to this weight
  WeightReport report;                 // filled by survey()
};

// Weights whose files hold their own numbers (tied ones once); formats empty.
std::vector<SurveyedWeight> weights_of(const Blueprint& blueprint);
// The weights named `name` (Hugging Face's or GGUF's name), "all": every one. Errors: Code::invalid_argument naming `option`.
std::vector<SurveyedWeight> weights_of(const Blueprint& blueprint, const std::string& name, const std::string& option);

// Fills the reports; shows progress. histograms: one a weight, or empty.
void survey(const Blueprint& blueprint, std::vector<SurveyedWeight>& weights, std::vector<NumberBins>* histograms = nullptr);

// NAME DTYPE SHAPE MIN MAX MEAN >6, and of the first format its largest and rms error and SQNR.
std::string tensor_table(const Blueprint& blueprint, const std::vector<SurveyedWeight>& weights);
nlohmann::ordered_json tensor_json(const Blueprint& blueprint, const std::vector<SurveyedWeight>& weights);

// A line a format over all weights that it was tried on.
std::string format_table(const std::vector<std::string>& names, const std::vector<SurveyedWeight>& weights);
nlohmann::ordered_json format_json(const std::vector<std::string>& names, const std::vector<SurveyedWeight>& weights);

std::vector<std::string> split_formats(const std::string& list, const std::string& option);  // "nf4,int8"

}  // namespace tandem
