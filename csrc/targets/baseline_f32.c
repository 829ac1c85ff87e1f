#define FB_ISA 0
#define FB_DOUBLE 0
#include "../core/table.h"
