/* The least that a program can do with an interface, to compare with.
 *
 *   loops send IFACE SOURCE DESTINATION   sends 60-byte frames without end, in batches, past the queue
 *   loops tap IFACE                       reads a frame of a TAP interface, writes it back, and so on
 *   loops packet IFACE                    the same with a packet socket
 *
 * The last two exchange the Ethernet addresses. Each ends with its parent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, FRAME = 60, LONGEST = 9218 };

static void fail(const char *what) { perror(what); exit(1); }

static int packet_socket(const char *name, int protocol) {
    int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1, room = 8 << 20;
    if (fd < 0) fail("socket");
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one);
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol),
                                  .sll_ifindex = if_nametoindex(name)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) fail(name);
    struct packet_mreq all = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all);
    return fd;
}

static void parse_mac(const char *text, unsigned char *mac) {
    if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6)
        fail(text);
}

static void send_all(const char *name, const char *source, const char *destination) {
    int fd = packet_socket(name, 0);
    /* UDP from 10.0.1.1 to 10.0.2.1, 46 bytes of IP. */
    unsigned char frame[FRAME] = {[12] = 8, [13] = 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x63, 0xbe, 10, 0, 1, 1, 10, 0, 2, 1,
                                  4, 0, 8, 0, 0, 26};
    parse_mac(destination, frame);
    parse_mac(source, frame + 6);
    struct iovec vector = {frame, FRAME};
    struct mmsghdr messages[BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) messages[i].msg_hdr.msg_iov = &vector, messages[i].msg_hdr.msg_iovlen = 1;
    for (;;) sendmmsg(fd, messages, BATCH, 0);
}

static void swap(unsigned char *frame) {
    unsigned char mac[6];
    memcpy(mac, frame, 6), memcpy(frame, frame + 6, 6), memcpy(frame + 6, mac, 6);
}

static void go_round(int fd) {
    static unsigned char frame[LONGEST];
    for (;;) {
        ssize_t length = read(fd, frame, sizeof frame);
        if (length < 14) continue;
        swap(frame);
        if (write(fd, frame, length) < 0) continue;
    }
}

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count == 5 && !strcmp(words[1], "send")) send_all(words[2], words[3], words[4]);
    if (count == 3 && !strcmp(words[1], "packet")) go_round(packet_socket(words[2], ETH_P_ALL));
    if (count == 3 && !strcmp(words[1], "tap")) {
        struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
        strncpy(request.ifr_name, words[2], IFNAMSIZ - 1);
        int fd = open("/dev/net/tun", O_RDWR);
        if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) fail(words[2]);
        go_round(fd);
    }
    fprintf(stderr, "usage: loops send IFACE SOURCE DESTINATION | tap IFACE | packet IFACE\n");
    return 2;
}
