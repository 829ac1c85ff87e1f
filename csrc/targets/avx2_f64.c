#define FB_ISA 1
#define FB_DOUBLE 1
#include "../core/table.h"
