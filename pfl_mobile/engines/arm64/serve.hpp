// What `frames.py` and `child.py` are in Python, for a program on another instruction set: it loads the programs that
// the first frame names, runs what the next ones ask for, and answers each. A frame that names an engine again loads
// other programs in place of those.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

struct Array {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

// Runs one program; the arrays are in the order of its signature.
using Run = std::function<std::vector<Array>(const json& program, std::vector<Array>& inputs)>;
// Loads what the first frame says.
using Load = std::function<Run(const json& head)>;

inline size_t width(const std::string& dtype) {
  static const std::map<std::string, size_t> widths = {{"bool", 1},    {"uint8", 1},   {"int8", 1},  {"int16", 2},
                                                       {"float16", 2}, {"int32", 4},   {"float32", 4}, {"int64", 8},
                                                       {"float64", 8}};
  auto found = widths.find(dtype);
  if (found == widths.end()) throw std::runtime_error("arrays of " + dtype + " are not supported");
  return found->second;
}

inline size_t count(const std::vector<int64_t>& shape) {
  size_t n = 1;
  for (auto length : shape) n *= static_cast<size_t>(length);
  return n;
}

namespace frames {

inline bool receive(FILE* from, json& head, std::vector<Array>& arrays) {
  uint64_t lengths[2];
  if (fread(lengths, sizeof lengths, 1, from) != 1) return false;
  std::string text(lengths[0], '\0');
  if (fread(text.data(), 1, text.size(), from) != text.size()) return false;
  head = json::parse(text);
  arrays.clear();
  for (const auto& about : head.at("arrays")) {
    Array array{about.at(0), about.at(1), {}};
    array.bytes.resize(width(array.dtype) * count(array.shape));
    if (fread(array.bytes.data(), 1, array.bytes.size(), from) != array.bytes.size()) return false;
    arrays.push_back(std::move(array));
  }
  return true;
}

inline void send(FILE* to, json head, const std::vector<Array>& arrays) {
  head["arrays"] = json::array();
  uint64_t lengths[2] = {0, 0};
  for (const auto& array : arrays) {
    head["arrays"].push_back({array.dtype, array.shape});
    lengths[1] += array.bytes.size();
  }
  // what a runtime says may be no text
  std::string text = head.dump(-1, ' ', true, json::error_handler_t::replace);
  lengths[0] = text.size();
  fwrite(lengths, sizeof lengths, 1, to);
  fwrite(text.data(), 1, text.size(), to);
  for (const auto& array : arrays) fwrite(array.bytes.data(), 1, array.bytes.size(), to);
  fflush(to);
}

}  // namespace frames

inline int serve(const Load& load) {
  FILE* from = fdopen(dup(0), "rb");
  FILE* to = fdopen(dup(1), "wb");
  dup2(open("/dev/null", O_RDONLY), 0);
  dup2(2, 1);  // what the runtimes print goes to standard error
  json head;
  std::vector<Array> arrays;
  std::map<std::string, json> programs;
  Run run;
  while (frames::receive(from, head, arrays)) {
    try {
      if (!run || head.contains("engine")) {
        run = nullptr;
        programs.clear();
        for (const auto& program : head.at("programs")) programs[program.at("name")] = program;
        run = load(head);
        frames::send(to, json::object(), {});
        continue;
      }
      frames::send(to, json::object(), run(programs.at(head.at("program")), arrays));
    } catch (const std::exception& error) {
      frames::send(to, {{"error", {"EngineError", error.what(), "export the bundle again"}}}, {});
    }
  }
  fflush(to);
  _exit(0);  // a damaged program may hang or crash while its runtime cleans up
}
