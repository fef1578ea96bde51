// For tests on a desktop only: the natives of org.pytorch.executorch.Module over the C++ runtime of the PyPI wheel.
//
// On a phone they are in libexecutorch.so, which is built for Android and needs fbjni. Here com.facebook.jni.HybridData
// is filled by hand. What apps can see is kept: outputs alias memory of the runtime, errors are the official exceptions.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <jni.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

namespace {

// A Java exception is pending: back to Java at once.
struct Pending {};

// What HybridData points to; deleted by its destructor thread or by Module.close.
struct Peer {
  static std::atomic<jlong> modules, tensors;
  std::unique_ptr<Module> module;  // none for a tensor, whose memory the module owns
  explicit Peer(std::unique_ptr<Module> held) : module(std::move(held)) { (module ? modules : tensors)++; }
  ~Peer() { (module ? modules : tensors)--; }
};
std::atomic<jlong> Peer::modules{0}, Peer::tensors{0};

// Every call into Java checks for an exception.
class Java {
 public:
  explicit Java(JNIEnv* env) : env(env) {}

  template <typename T>
  T checked(T value) const {
    if (env->ExceptionCheck()) throw Pending{};
    return value;
  }
  void check() const {
    if (env->ExceptionCheck()) throw Pending{};
  }
  template <typename... Arguments>
  jobject made_by(jclass type, jmethodID method, Arguments... arguments) const {
    return checked(env->CallStaticObjectMethod(type, method, arguments...));
  }
  template <typename... Arguments>
  jobject from(jobject object, jmethodID method, Arguments... arguments) const {
    return checked(env->CallObjectMethod(object, method, arguments...));
  }
  std::string text(jstring value) const {
    const char* chars = checked(env->GetStringUTFChars(value, nullptr));
    std::string copied(chars);
    env->ReleaseStringUTFChars(value, chars);
    return copied;
  }
  jclass type(const char* name) const {
    return static_cast<jclass>(checked(env->NewGlobalRef(checked(env->FindClass(name)))));
  }
  jmethodID method(jclass type, const char* name, const char* form) const {
    return checked(env->GetMethodID(type, name, form));
  }
  jmethodID maker(jclass type, const char* name, const char* form) const {
    return checked(env->GetStaticMethodID(type, name, form));
  }
  jfieldID field(jclass type, const char* name, const char* form) const {
    return checked(env->GetFieldID(type, name, form));
  }

  JNIEnv* const env;
};

struct Names {
  jclass evalue, tensor, hybrid, string, exception;
  jfieldID destructor, pointer, peer, type_code, shape;
  jmethodID new_hybrid, new_tensor, of_tensor, of_int, of_double, of_bool, to_tensor, to_int, to_double, to_bool, dtype,
      buffer, new_exception, order;
  jobject native_order;
} names;

constexpr jint TENSOR = 1, DOUBLE = 3, INT = 4, BOOL = 5;

[[noreturn]] void fail(const Java& java, Error error, const std::string& text) {
  auto message = java.checked(java.env->NewStringUTF(text.c_str()));
  auto thrown = java.made_by(names.exception, names.new_exception, static_cast<jint>(error), message);
  java.env->Throw(static_cast<jthrowable>(thrown));
  throw Pending{};
}

jobject hybrid(const Java& java, std::unique_ptr<Peer> peer) {
  jobject data = java.checked(java.env->NewObject(names.hybrid, names.new_hybrid));
  jobject destructor = java.checked(java.env->GetObjectField(data, names.destructor));
  java.env->SetLongField(destructor, names.pointer, reinterpret_cast<jlong>(peer.release()));
  return data;
}

Module& module_of(const Java& java, jobject module) {
  jobject data = java.checked(java.env->GetObjectField(module, names.peer));
  jobject destructor = java.checked(java.env->GetObjectField(data, names.destructor));
  auto* peer = reinterpret_cast<Peer*>(java.env->GetLongField(destructor, names.pointer));
  if (peer == nullptr) fail(java, Error::InvalidState, "the module is closed");
  return *peer->module;
}

TensorPtr input(const Java& java, jobject tensor) {
  auto shape = static_cast<jlongArray>(java.checked(java.env->GetObjectField(tensor, names.shape)));
  std::vector<jlong> sizes(java.env->GetArrayLength(shape));
  java.env->GetLongArrayRegion(shape, 0, static_cast<jsize>(sizes.size()), sizes.data());
  java.check();
  auto type = static_cast<ScalarType>(java.checked(java.env->CallIntMethod(tensor, names.dtype)));
  jobject buffer = java.from(tensor, names.buffer);
  void* data = java.env->GetDirectBufferAddress(buffer);
  jlong count = 1;
  for (auto length : sizes) count *= length;
  if (data == nullptr || java.env->GetDirectBufferCapacity(buffer) < count)
    fail(java, Error::InvalidArgument, "the buffer of a tensor is not direct, or too small");
  return executorch::extension::from_blob(data, {sizes.begin(), sizes.end()}, type);
}

jobject output(const Java& java, const EValue& value) {
  JNIEnv* env = java.env;
  if (value.isTensor()) {
    auto tensor = value.toTensor();
    std::vector<jlong> sizes(tensor.sizes().begin(), tensor.sizes().end());
    auto shape = java.checked(env->NewLongArray(static_cast<jsize>(sizes.size())));
    env->SetLongArrayRegion(shape, 0, static_cast<jsize>(sizes.size()), sizes.data());
    java.check();
    auto bytes = java.checked(env->NewDirectByteBuffer(tensor.mutable_data_ptr(), static_cast<jlong>(tensor.nbytes())));
    java.from(bytes, names.order, names.native_order);
    auto peer = hybrid(java, std::make_unique<Peer>(nullptr));
    auto type = static_cast<jint>(tensor.scalar_type());
    return java.made_by(names.evalue, names.of_tensor, java.made_by(names.tensor, names.new_tensor, bytes, shape, type, peer));
  }
  if (value.isInt()) return java.made_by(names.evalue, names.of_int, static_cast<jlong>(value.toInt()));
  if (value.isDouble()) return java.made_by(names.evalue, names.of_double, value.toDouble());
  if (value.isBool()) return java.made_by(names.evalue, names.of_bool, static_cast<jboolean>(value.toBool()));
  fail(java, Error::InvalidArgument, "an output is neither a tensor nor a number");
}

// Local references of a part of the work end with it.
class Frame {
 public:
  explicit Frame(const Java& java) : env_(java.env) {
    if (env_->PushLocalFrame(32)) throw Pending{};
  }
  ~Frame() { env_->PopLocalFrame(nullptr); }

 private:
  JNIEnv* env_;
};

jobjectArray strings(const Java& java, const std::vector<std::string>& values) {
  auto made = java.checked(java.env->NewObjectArray(static_cast<jsize>(values.size()), names.string, nullptr));
  for (size_t i = 0; i < values.size(); i++) {
    Frame frame(java);
    java.env->SetObjectArrayElement(made, static_cast<jsize>(i), java.checked(java.env->NewStringUTF(values[i].c_str())));
    java.check();
  }
  return made;
}

template <typename T, typename Work>
T answered(JNIEnv* env, T otherwise, Work work) {
  try {
    return work(Java(env));
  } catch (const Pending&) {
    return otherwise;
  } catch (const std::exception& error) {
    env->ThrowNew(env->FindClass("java/lang/IllegalStateException"), error.what());
    return otherwise;
  }
}

jobject init_hybrid(JNIEnv* env, jclass, jstring path, jint mode, jint /* threads: the wheel has no header of its pool */) {
  return answered<jobject>(env, nullptr, [&](const Java& java) {
    static const Module::LoadMode modes[] = {Module::LoadMode::File, Module::LoadMode::Mmap, Module::LoadMode::MmapUseMlock,
                                             Module::LoadMode::MmapUseMlockIgnoreErrors};
    auto module = std::make_unique<Module>(java.text(path), modes[mode & 3]);
    return hybrid(java, std::make_unique<Peer>(std::move(module)));
  });
}

jobjectArray execute(JNIEnv* env, jobject self, jstring method, jobjectArray inputs) {
  return answered<jobjectArray>(env, nullptr, [&](const Java& java) {
    const std::string name = java.text(method);
    std::vector<TensorPtr> tensors;
    std::vector<EValue> values;
    for (jsize i = 0, count = env->GetArrayLength(inputs); i < count; i++) {
      Frame frame(java);
      jobject value = java.checked(env->GetObjectArrayElement(inputs, i));
      switch (env->GetIntField(value, names.type_code)) {
        case TENSOR:
          tensors.push_back(input(java, java.from(value, names.to_tensor)));
          values.emplace_back(tensors.back());
          break;
        case DOUBLE: values.emplace_back(java.checked(env->CallDoubleMethod(value, names.to_double))); break;
        case INT: values.emplace_back(static_cast<int64_t>(java.checked(env->CallLongMethod(value, names.to_int)))); break;
        case BOOL: values.emplace_back(java.checked(env->CallBooleanMethod(value, names.to_bool)) == JNI_TRUE); break;
        default: fail(java, Error::InvalidArgument, "an input is neither a tensor nor a number");
      }
    }
    auto result = module_of(java, self).execute(name, values);
    if (!result.ok()) fail(java, result.error(), "Execution failed for method: " + name);
    auto outputs = java.checked(env->NewObjectArray(static_cast<jsize>(result->size()), names.evalue, nullptr));
    for (size_t i = 0; i < result->size(); i++) {
      Frame frame(java);
      env->SetObjectArrayElement(outputs, static_cast<jsize>(i), output(java, (*result)[i]));
      java.check();
    }
    return outputs;
  });
}

jint load_method(JNIEnv* env, jobject self, jstring name) {
  return answered<jint>(env, 0, [&](const Java& java) {
    return static_cast<jint>(module_of(java, self).load_method(java.text(name)));
  });
}

jobjectArray method_names(JNIEnv* env, jobject self) {
  return answered<jobjectArray>(env, nullptr, [&](const Java& java) {
    auto found = module_of(java, self).method_names();
    if (!found.ok()) fail(java, found.error(), "Could not load module");
    return strings(java, {found->begin(), found->end()});
  });
}

jobjectArray backends(JNIEnv* env, jobject self, jstring name) {
  return answered<jobjectArray>(env, nullptr, [&](const Java& java) {
    auto meta = module_of(java, self).method_meta(java.text(name));
    if (!meta.ok()) fail(java, meta.error(), "Could not read the method");
    std::vector<std::string> found;
    for (size_t i = 0; i < meta->num_backends(); i++) found.emplace_back(*meta->get_backend_name(i));
    return strings(java, found);
  });
}

jobjectArray no_log(JNIEnv* env, jobject) {
  return answered<jobjectArray>(env, nullptr, [&](const Java& java) { return strings(java, {}); });
}
jobjectArray no_static_log(JNIEnv* env, jclass) { return no_log(env, nullptr); }
jboolean no_dump(JNIEnv*, jobject) { return JNI_FALSE; }
jboolean no_dump_to(JNIEnv*, jobject, jstring) { return JNI_FALSE; }
void delete_peer(JNIEnv*, jclass, jlong pointer) { delete reinterpret_cast<Peer*>(pointer); }

template <size_t N>
bool registered(JNIEnv* env, jclass type, const JNINativeMethod (&methods)[N]) {
  return env->RegisterNatives(type, methods, N) == JNI_OK;
}

jint prepare(const Java& java) {
  JNIEnv* env = java.env;
  names.hybrid = java.type("com/facebook/jni/HybridData");
  names.new_hybrid = java.method(names.hybrid, "<init>", "()V");
  names.destructor = java.field(names.hybrid, "mDestructor", "Lcom/facebook/jni/HybridData$Destructor;");
  jclass destructor = java.type("com/facebook/jni/HybridData$Destructor");
  names.pointer = java.field(destructor, "mNativePointer", "J");
  names.evalue = java.type("org/pytorch/executorch/EValue");
  names.tensor = java.type("org/pytorch/executorch/Tensor");
  names.string = java.type("java/lang/String");
  names.exception = java.type("org/pytorch/executorch/ExecutorchRuntimeException");
  names.new_exception = java.maker(names.exception, "makeExecutorchException", "(ILjava/lang/String;)Ljava/lang/RuntimeException;");
#define EVALUE "Lorg/pytorch/executorch/EValue;"
#define JTENSOR "Lorg/pytorch/executorch/Tensor;"
  names.type_code = java.field(names.evalue, "mTypeCode", "I");
  names.to_tensor = java.method(names.evalue, "toTensor", "()" JTENSOR);
  names.to_int = java.method(names.evalue, "toInt", "()J");
  names.to_double = java.method(names.evalue, "toDouble", "()D");
  names.to_bool = java.method(names.evalue, "toBool", "()Z");
  names.of_tensor = java.maker(names.evalue, "from", "(" JTENSOR ")" EVALUE);
  names.of_int = java.maker(names.evalue, "from", "(J)" EVALUE);
  names.of_double = java.maker(names.evalue, "from", "(D)" EVALUE);
  names.of_bool = java.maker(names.evalue, "from", "(Z)" EVALUE);
  names.shape = java.field(names.tensor, "shape", "[J");
  names.dtype = java.method(names.tensor, "dtypeJniCode", "()I");
  names.buffer = java.method(names.tensor, "getRawDataBuffer", "()Ljava/nio/Buffer;");
  names.new_tensor =
      java.maker(names.tensor, "nativeNewTensor", "(Ljava/nio/ByteBuffer;[JILcom/facebook/jni/HybridData;)" JTENSOR);
  jclass order = java.type("java/nio/ByteOrder");
  names.order = java.method(java.type("java/nio/ByteBuffer"), "order", "(Ljava/nio/ByteOrder;)Ljava/nio/ByteBuffer;");
  jobject native = java.made_by(order, java.maker(order, "nativeOrder", "()Ljava/nio/ByteOrder;"));
  names.native_order = java.checked(env->NewGlobalRef(native));
  jclass module = java.type("org/pytorch/executorch/Module");
  names.peer = java.field(module, "mHybridData", "Lcom/facebook/jni/HybridData;");
#define NATIVE(name, form, function) {const_cast<char*>(name), const_cast<char*>(form), reinterpret_cast<void*>(function)}
  const JNINativeMethod of_destructor[] = {NATIVE("deleteNative", "(J)V", delete_peer)};
  const JNINativeMethod of_module[] = {
      NATIVE("initHybrid", "(Ljava/lang/String;II)Lcom/facebook/jni/HybridData;", init_hybrid),
      NATIVE("executeNative", "(Ljava/lang/String;[" EVALUE ")[" EVALUE, execute),
      NATIVE("loadMethodNative", "(Ljava/lang/String;)I", load_method),
      NATIVE("getMethodsNative", "()[Ljava/lang/String;", method_names),
      NATIVE("getUsedBackends", "(Ljava/lang/String;)[Ljava/lang/String;", backends),
      NATIVE("readLogBufferNative", "()[Ljava/lang/String;", no_log),
      NATIVE("readLogBufferStaticNative", "()[Ljava/lang/String;", no_static_log),
      NATIVE("etdumpNative", "()Z", no_dump),
      NATIVE("etdumpToNative", "(Ljava/lang/String;)Z", no_dump_to),
  };
  if (!registered(env, destructor, of_destructor) || !registered(env, module, of_module)) throw Pending{};
  return JNI_VERSION_1_8;
}

}  // namespace

extern "C" JNIEXPORT jlong JNICALL Java_io_pflmobile_core_engines_DesktopBridge_modules(JNIEnv*, jclass) { return Peer::modules; }

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_8) != JNI_OK) return JNI_ERR;
  try {
    return prepare(Java(env));
  } catch (const Pending&) {
    return JNI_ERR;
  }
}
