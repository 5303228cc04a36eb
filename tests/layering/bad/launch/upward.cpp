#include <interop/c/handles.h>
