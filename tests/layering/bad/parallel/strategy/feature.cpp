#if defined(PERIPLUS_HAS_MPI)
#endif
