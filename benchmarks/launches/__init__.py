"""Operations and host waits of the GPU path, counted on fake CUDA tensors: no GPU is needed, and no kernel runs."""
