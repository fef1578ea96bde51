// Serves the programs of a bundle with the ExecuTorch runtime of the wheel.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <memory>

#include "serve.hpp"

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;

static const std::map<std::string, ScalarType> TYPES = {
    {"bool", ScalarType::Bool},     {"uint8", ScalarType::Byte},  {"int8", ScalarType::Char},
    {"int16", ScalarType::Short},   {"int32", ScalarType::Int},   {"int64", ScalarType::Long},
    {"float16", ScalarType::Half},  {"float32", ScalarType::Float}, {"float64", ScalarType::Double}};

static std::string name_of(ScalarType type) {
  for (const auto& [name, known] : TYPES)
    if (known == type) return name;
  throw std::runtime_error("an output has the type " + std::to_string(static_cast<int>(type)));
}

static void check(Error error, const std::string& what) {
  if (error == Error::Ok) return;
  char code[16];
  snprintf(code, sizeof code, "0x%x", static_cast<unsigned>(error));
  throw std::runtime_error("ExecuTorch " + what + ": error " + code);
}

static std::vector<Array> run(Module& module, const json& program, std::vector<Array>& inputs) {
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<EValue> values;
  for (auto& array : inputs) {
    std::vector<executorch::aten::SizesType> shape(array.shape.begin(), array.shape.end());
    tensors.push_back(executorch::extension::from_blob(array.bytes.data(), shape, TYPES.at(array.dtype)));
    values.emplace_back(*tensors.back());
  }
  const std::string name = program.at("name");
  auto result = module.execute(name, values);
  check(result.error(), "cannot run " + name);
  std::vector<Array> outputs;
  for (const auto& value : *result) {
    if (!value.isTensor()) throw std::runtime_error("an output of " + name + " is no tensor");
    const auto tensor = value.toTensor();
    const auto* data = static_cast<const char*>(tensor.const_data_ptr());
    outputs.push_back({name_of(tensor.scalar_type()),
                       {tensor.sizes().begin(), tensor.sizes().end()},
                       {data, data + tensor.nbytes()}});
  }
  return outputs;
}

int main() {
  return serve([](const json& head) -> Run {
    auto module = std::make_shared<Module>(head.at("files").at("model").get<std::string>());
    check(module->load(executorch::runtime::Program::Verification::InternalConsistency), "cannot load the program");
    return [module](const json& program, std::vector<Array>& inputs) { return run(*module, program, inputs); };
  });
}
