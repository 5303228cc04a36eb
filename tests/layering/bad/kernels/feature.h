#ifdef PERIPLUS_HAS_CUDA
#endif
