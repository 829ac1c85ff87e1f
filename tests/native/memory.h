/* Arrays that nobody reads past their end, and a count of the library's allocations.
 *
 * An array ends where a page begins that may not be touched, so that an access past it ends the
 * program; inputs may not be written either. The linker sends the library's calls of malloc and its
 * kin here (--wrap), where they are counted.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct mapping {
    void *start;
    size_t size;
    struct mapping *next;
} mapping;

static mapping *mappings;

static void *mapped(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (size + sizeof(mapping) + page - 1) / page * page;
    int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *start = mmap(NULL, room + page, access, flags, -1, 0);
    if (start == MAP_FAILED || mprotect(start + room, page, PROT_NONE) != 0) {
        perror("no memory for an array");
        exit(1);
    }
    mapping *head = (mapping *)(void *)start;
    *head = (mapping){start, room + page, mappings};
    mappings = head;
    return start + room - size;
}

/* Of an array that ends at its page's end, as all do. */
static const void *protected(void *array, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *end = (char *)array + size;
    size_t room = (size + sizeof(mapping) + page - 1) / page * page;
    mprotect(end - room, room, PROT_READ);
    return array;
}

static void unmap_all(void)
{
    while (mappings) {
        mapping head = *mappings;
        munmap(head.start, head.size);
        mappings = head.next;
    }
}

static _Atomic int64_t allocations, blocks; /* made in all; in use */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *block);

static void *counted(void *block)
{
    atomic_fetch_add(&allocations, 1);
    if (block) atomic_fetch_add(&blocks, 1);
    return block;
}

void *__wrap_malloc(size_t size) { return counted(__real_malloc(size)); }
void *__wrap_calloc(size_t count, size_t size) { return counted(__real_calloc(count, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return counted(__real_aligned_alloc(alignment, size));
}
void *__wrap_realloc(void *old, size_t size)
{
    if (old) atomic_fetch_sub(&blocks, 1);
    return counted(__real_realloc(old, size));
}
void __wrap_free(void *block)
{
    if (block) atomic_fetch_sub(&blocks, 1);
    __real_free(block);
}
