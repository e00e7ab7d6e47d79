/* A camera at /dev/video0 for programs that are started with LD_PRELOAD: a grey that rises with every frame.
   Stands for the kernel's module where that cannot be loaded. YUYV, 64 x 48, ten frames a second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 64, HEIGHT = 48, SIZE = 2 * WIDTH * HEIGHT, PAGE = 8192, MOST = 32 };
static int camera = -1, waiting[MOST], first, last, count;

static int opened(const char *name, int (*real)(const char *, int, ...), int flags, int mode) {
    if (strcmp(name, "/dev/video0")) return real(name, flags, mode);
    camera = memfd_create("camera", 0);
    return ftruncate(camera, MOST * PAGE) ? -1 : camera;
}

#define OPEN(NAME)                                                    \
    int NAME(const char *name, int flags, ...) {                      \
        va_list more;                                                 \
        va_start(more, flags);                                        \
        int mode = flags & O_CREAT ? va_arg(more, int) : 0;           \
        va_end(more);                                                 \
        return opened(name, dlsym(RTLD_NEXT, #NAME), flags, mode);    \
    }
OPEN(open)
OPEN(open64)

static int answer(unsigned long request, void *data) {
    struct v4l2_buffer *buffer = data;
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *found = data;
        memset(found, 0, sizeof *found);
        found->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    }
    case VIDIOC_G_FMT:
    case VIDIOC_TRY_FMT:
    case VIDIOC_S_FMT: {
        struct v4l2_pix_format *pix = &((struct v4l2_format *)data)->fmt.pix;
        pix->width = WIDTH, pix->height = HEIGHT, pix->pixelformat = V4L2_PIX_FMT_YUYV;
        pix->field = V4L2_FIELD_NONE, pix->bytesperline = 2 * WIDTH, pix->sizeimage = SIZE;
        return 0;
    }
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM: {
        struct v4l2_captureparm *capture = &((struct v4l2_streamparm *)data)->parm.capture;
        capture->timeperframe = (struct v4l2_fract){1, 10};
        return 0;
    }
    case VIDIOC_G_INPUT:
        *(int *)data = 0;
        return 0;
    case VIDIOC_ENUMINPUT:
        if (((struct v4l2_input *)data)->index) break;
        memset(data, 0, sizeof(struct v4l2_input));
        return 0;
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *wanted = data;
        wanted->count = wanted->count > MOST ? MOST : wanted->count;
        return 0;
    }
    case VIDIOC_QUERYBUF:
        buffer->length = SIZE, buffer->m.offset = buffer->index * PAGE;
        return 0;
    case VIDIOC_QBUF:
        waiting[last++ % MOST] = buffer->index;
        return 0;
    case VIDIOC_DQBUF: {
        nanosleep(&(struct timespec){0, 100000000}, 0);
        if (first == last) return errno = EAGAIN, -1;
        unsigned char grey[SIZE];
        for (int at = 0; at < SIZE; at += 2) grey[at] = 30 + 5 * (count % 40), grey[at + 1] = 128;
        buffer->index = waiting[first++ % MOST];
        buffer->bytesused = SIZE, buffer->sequence = count++, buffer->flags = 0;
        buffer->timestamp.tv_sec = time(0), buffer->timestamp.tv_usec = 0;
        return pwrite(camera, grey, SIZE, buffer->index * PAGE) == SIZE ? 0 : -1;
    }
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
        return 0;
    }
    errno = ENOTTY;
    return -1;
}

int ioctl(int file, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *data = va_arg(more, void *);
    va_end(more);
    if (file == camera && file >= 0) return answer((unsigned int)request, data);
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return real(file, request, data);
}
