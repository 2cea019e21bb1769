# make plugins: builds the libraries under build/plugins and copies them into the Python package.
#   make plugins ARCHS=90a                   one architecture, while developing
#   make plugins CUDA_ROOT=/usr/local/cuda   a toolkit of the machine instead of pip's cuda-toolkit
#   make plugins TENSORRT_INCLUDE=DIR        against the official headers
PYTHON ?= python3
CMAKE ?= cmake
ARCHS ?= 80;86;89;90a;100;120
CUDA_ROOT ?= $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
TENSORRT_INCLUDE ?=

.PHONY: plugins
plugins:
	$(CMAKE) -S plugins -B build/plugins '-DQWEN3MOE_ARCHS=$(ARCHS)' \
	    -DCMAKE_CUDA_COMPILER=$(CUDA_ROOT)/bin/nvcc -DQWEN3MOE_TENSORRT_INCLUDE=$(TENSORRT_INCLUDE)
	$(CMAKE) --build build/plugins --parallel $(shell nproc)
	mkdir -p plugins/qwen3moe_plugins/lib
	cp build/plugins/lib*.so plugins/qwen3moe_plugins/lib/
