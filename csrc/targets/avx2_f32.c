#define FB_ISA 1
#define FB_DOUBLE 0
#define FB_TABLE fb_avx2_f32
#include "../core/table.h"
