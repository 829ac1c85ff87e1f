#define FB_ISA 2
#define FB_DOUBLE 0
#define FB_TABLE fb_avx512_f32
#include "../core/table.h"
