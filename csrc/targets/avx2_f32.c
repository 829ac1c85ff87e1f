#define FB_ISA 1
#define FB_DOUBLE 0
#include "../core/table.h"
