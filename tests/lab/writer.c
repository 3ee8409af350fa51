/* Writes and flushes a disk as hard as it can, and says on its console what is flushed.
 *
 *     writer DEVICE WRITERS SEQUENCE
 *
 * Each of WRITERS processes has its part of DEVICE. From SEQUENCE on it writes an extent of its part whose place
 * and length follow from its number and the sequence, flushes, and says "flushed NUMBER SEQUENCE". Every sector
 * tells its sequence first, and the rest of it follows from its place and that: see test_disk_faults.py.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SECTOR 512
#define WORDS (SECTOR / 8)
#define LONGEST 512

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15 + b;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int writer(const char *device, unsigned number, unsigned writers, uint64_t sequence)
{
    static uint64_t data[LONGEST * WORDS] __attribute__((aligned(4096)));
    int fd = open(device, O_RDWR | O_DIRECT);
    uint64_t part = fd < 0 ? 0 : lseek(fd, 0, SEEK_END) / SECTOR / writers;

    for (; part > LONGEST; sequence++) {
        uint64_t chance = mix(number, sequence);
        uint64_t length = 1 + chance % LONGEST;
        uint64_t first = number * part + (chance >> 32) % (part - length);

        for (uint64_t i = 0; i < length; i++) {
            data[i * WORDS] = sequence;
            for (uint64_t word = 1; word < WORDS; word++)
                data[i * WORDS + word] = mix(first + i, sequence) + word;
        }
        if (pwrite(fd, data, length * SECTOR, first * SECTOR) != (ssize_t)(length * SECTOR) || fdatasync(fd))
            break;
        dprintf(1, "flushed %u %llu\n", number, (unsigned long long)sequence);
    }
    perror("writer");
    return 1;
}

int main(int argc, char **argv)
{
    unsigned writers = argc == 4 ? atoi(argv[2]) : 0;

    for (unsigned number = 1; number < writers; number++)
        if (fork() == 0)
            return writer(argv[1], number, writers, strtoull(argv[3], 0, 10));
    return writers ? writer(argv[1], 0, writers, strtoull(argv[3], 0, 10)) : 2;
}
