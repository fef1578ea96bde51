// Serves the programs of a bundle with the ONNX Runtime library of the wheel.
//
// Wheels have the library and not its header. Its C interface is one table of functions that only ever grows, so the
// few that are used here are named by their places in it.
#include <dlfcn.h>

#include <memory>

#include "serve.hpp"

namespace {

struct Base {
  const void* const* (*table)(uint32_t version);
  const char* (*version)();
};

enum Place : size_t {
  ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION = 7,
  RUN = 9,
  CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_THREADS = 24,
  SET_INTER_OP_THREADS = 25,
  CREATE_TENSOR_WITH_DATA = 49,
  TENSOR_DATA = 51,
  ELEMENT_TYPE = 60,
  DIMENSIONS_COUNT = 61,
  DIMENSIONS = 62,
  TENSOR_TYPE_AND_SHAPE = 65,
  CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_ENV = 92,
  RELEASE_STATUS = 93,
  RELEASE_MEMORY_INFO = 94,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_TYPE_AND_SHAPE = 99,
  RELEASE_SESSION_OPTIONS = 100,
};

constexpr int LOG_ERRORS = 3, ARENA_ALLOCATOR = 1, DEFAULT_MEMORY = 0;

const std::map<std::string, int> TYPES = {{"float32", 1}, {"uint8", 2}, {"int8", 3},     {"int16", 5},   {"int32", 6},
                                          {"int64", 7},   {"bool", 9},  {"float16", 10}, {"float64", 11}};

const void* const* api;

template <typename... Arguments>
void release(Place place, Arguments... arguments) {
  reinterpret_cast<void (*)(Arguments...)>(api[place])(arguments...);
}

// Every function but those that release gives a status, null where all is well.
template <typename... Arguments>
void call(Place place, Arguments... arguments) {
  void* status = reinterpret_cast<void* (*)(Arguments...)>(api[place])(arguments...);
  if (status == nullptr) return;
  std::string said = reinterpret_cast<const char* (*)(void*)>(api[ERROR_MESSAGE])(status);
  release(RELEASE_STATUS, status);
  throw std::runtime_error("ONNX Runtime: " + said);
}

struct Value {
  void* pointer = nullptr;
  Value() = default;
  Value(Value&& other) noexcept : pointer(std::exchange(other.pointer, nullptr)) {}
  Value(const Value&) = delete;
  ~Value() {
    if (pointer) release(RELEASE_VALUE, pointer);
  }
};

struct Runtime {
  void *env = nullptr, *options = nullptr, *memory = nullptr;
  json files;
  std::map<std::string, void*> sessions;

  explicit Runtime(const json& head) : files(head.at("files")) {
    call(CREATE_ENV, LOG_ERRORS, "pfl", &env);
    call(CREATE_SESSION_OPTIONS, &options);
    call(SET_INTRA_OP_THREADS, options, 1);
    call(SET_INTER_OP_THREADS, options, 1);
    call(CREATE_CPU_MEMORY_INFO, ARENA_ALLOCATOR, DEFAULT_MEMORY, &memory);
  }

  Runtime(const Runtime&) = delete;

  ~Runtime() {
    for (const auto& [name, session] : sessions)
      if (session) release(RELEASE_SESSION, session);
    if (memory) release(RELEASE_MEMORY_INFO, memory);
    if (options) release(RELEASE_SESSION_OPTIONS, options);
    if (env) release(RELEASE_ENV, env);
  }

  void* session(const std::string& name) {
    auto& found = sessions[name];
    if (found == nullptr) {
      const std::string file = files.at(name);
      call(CREATE_SESSION, env, file.c_str(), options, &found);
    }
    return found;
  }

  std::vector<Array> run(const json& program, std::vector<Array>& inputs) {
    std::vector<std::string> names;
    for (const char* side : {"inputs", "outputs"})
      for (const auto& spec : program.at(side)) names.push_back(spec.at("name"));
    std::vector<const char*> all;
    for (const auto& name : names) all.push_back(name.c_str());
    if (inputs.size() != program.at("inputs").size()) throw std::runtime_error("another number of inputs");
    std::vector<Value> values(inputs.size());
    std::vector<const void*> given;
    for (size_t i = 0; i < inputs.size(); i++) {
      auto& array = inputs[i];
      call(CREATE_TENSOR_WITH_DATA, memory, static_cast<void*>(array.bytes.data()), array.bytes.size(),
           static_cast<const int64_t*>(array.shape.data()), array.shape.size(), TYPES.at(array.dtype),
           &values[i].pointer);
      given.push_back(values[i].pointer);
    }
    const size_t wanted = all.size() - given.size();
    std::vector<void*> made(wanted, nullptr);
    call(RUN, session(program.at("name")), static_cast<void*>(nullptr), static_cast<const char* const*>(all.data()),
         static_cast<const void* const*>(given.data()), given.size(),
         static_cast<const char* const*>(all.data() + given.size()), wanted, made.data());
    std::vector<Value> owned(wanted);
    for (size_t i = 0; i < wanted; i++) owned[i].pointer = made[i];
    std::vector<Array> outputs;
    for (auto& value : owned) outputs.push_back(array_of(value));
    return outputs;
  }

  static Array array_of(const Value& value) {
    void *about = nullptr, *data = nullptr;
    int type = 0;
    size_t rank = 0;
    call(TENSOR_TYPE_AND_SHAPE, static_cast<const void*>(value.pointer), &about);
    call(ELEMENT_TYPE, static_cast<const void*>(about), &type);
    call(DIMENSIONS_COUNT, static_cast<const void*>(about), &rank);
    Array array;
    array.shape.resize(rank);
    call(DIMENSIONS, static_cast<const void*>(about), array.shape.data(), rank);
    release(RELEASE_TYPE_AND_SHAPE, about);
    for (const auto& [name, code] : TYPES)
      if (code == type) array.dtype = name;
    call(TENSOR_DATA, value.pointer, &data);
    const auto* bytes = static_cast<const char*>(data);
    array.bytes.assign(bytes, bytes + width(array.dtype) * count(array.shape));
    return array;
  }
};

}  // namespace

int main() {
  return serve([](const json& head) -> Run {
    void* library = dlopen(PFL_ONNXRUNTIME, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    auto base = reinterpret_cast<const Base* (*)()>(dlsym(library, "OrtGetApiBase"));
    if (base == nullptr) throw std::runtime_error("the library has no OrtGetApiBase");
    api = base()->table(1);
    auto runtime = std::make_shared<Runtime>(head);
    return [runtime](const json& program, std::vector<Array>& inputs) { return runtime->run(program, inputs); };
  });
}
