# llama-cpp-python forces llama.cpp's `common` library on, which it neither loads nor ships
# where Python finds it. A normal variable beats the forced cache entry (policy CMP0126), and
# half of the compiling falls away.
set(LLAMA_BUILD_COMMON OFF)
