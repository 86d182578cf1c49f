/* nodedb_vamana.h - v0.2 - nearest vectors by a Vamana (DiskANN) graph - public domain or MIT, as you prefer

1. WHAT IT IS FOR, AND NOT FOR
   It finds the k vectors nearest to a query among thousands to billions, while vectors are inserted, replaced and
   removed. The answer is approximate, and the caller chooses for each query how much recall to pay for. The index lives
   in memory, or is searched in its file. It needs libc, pthreads and libm, and uses liburing where there is one.
   Not for: a few hundred vectors (a loop over all is as fast, and exact: nodedb_vamana_scan is that loop); sparse
   vectors; several writers at once; a durable record of each change (a save is a snapshot; keep a log beside it).

2. QUICK START

        #define NODEDB_VAMANA_IMPLEMENTATION // in exactly one source file of the program
        #include <nodedb_vamana.h>
        #include <stdio.h>
        #include <string.h>

        int main(void) {
            const float points[3][2] = {{0, 0}, {3, 4}, {10, 10}}, wanted[2] = {3, 3};
            nodedb_vamana_config config;
            nodedb_vamana_query query;
            nodedb_vamana_result results[2];
            nodedb_error err;
            uint32_t found = 0;
            memset(&config, 0, sizeof config); // zero means the default, in every config and query
            config.dim = 2;
            nodedb_vamana *index = nodedb_vamana_create(&config, &err);
            if (index == NULL) return puts(err.message), 1;
            for (uint32_t i = 0; i < 3; i++)
                if (nodedb_vamana_insert(index, 100 + i, points[i], &err) != NODEDB_OK) return puts(err.message), 1;
            nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, &err);
            if (searcher == NULL) return puts(err.message), 1;
            memset(&query, 0, sizeof query);
            query.vector = wanted, query.k = 2;
            if (nodedb_vamana_search(searcher, &query, results, &found, NULL, &err) != NODEDB_OK)
                return puts(err.message), 1;
            for (uint32_t i = 0; i < found; i++) // prints id 101, distance 1 and id 100, distance 18
                printf("id %u, distance %g\n", (unsigned)results[i].id, (double)results[i].distance);
            nodedb_vamana_searcher_destroy(searcher);
            nodedb_vamana_destroy(index);
            return 0;
        }

   Section 4 has a second program, which filters, saves, and searches on disk. Section 10 tells how to compile them.

3. CONCEPTS
   ID, SLOT   An id is the caller's name for a vector: any 64-bit number. A slot is the vector's place in the index's
              arrays: 32 bits, chosen by the index, and reused after a removal. Only fetchers deal with slots.
   METRIC     L2 is the squared Euclidean distance, IP the negative inner product, COSINE 1 minus the cosine. A smaller
              distance is always nearer. Every distance that a search returns is exact, never one by code.
   RECALL     recall@10 is the share of the true ten nearest that are among the ten returned. To measure it on your
              data, give nodedb_vamana_search and nodedb_vamana_scan the same queries and compare.
   GRAPH      Every vector is a node. Its row holds at most R (`degree`) edges to other nodes: many near ones, and some
              far ones, because an edge is dropped if a chosen neighbour offers a detour that is short enough (`alpha`
              says how short, where the row has room). Between two changes every live node is reachable from one node,
              the entry: each other node has a parent whose row must keep the edge to it, and the parents lead up to the
              entry.
   LEVEL      One node in 16 is of level 1 or more, one in 256 of level 2 or more, and so on up to 5 (with R below 20,
              up to R / 4). Such a node reserves half of its row, at most 255 places, for edges to others of its levels.
              They lead from cluster to cluster, however large the clusters are.
   BEAM       A search begins at the entry and at the nearest of up to 64 starts, nodes of high levels. It follows edges
              of the levels while they lead nearer. Then it keeps the `beam` nearest nodes that it has met, and expands
              the nearest of them that it has not expanded yet, which means that it measures that node's neighbours,
              until all are expanded. A wider beam finds more, and costs about in proportion. If the beam is as wide as
              the index has vectors, the search scans them all, and finds everything.
   BEAM_BUILD A new node's neighbours are chosen among the nearest nodes that a walk to it meets, with a beam of
              `beam_build`. Where that is 0, the beam is 128 and adapts, up to four times as wide: one insert in 64
              walks again with twice the beam, and if that meets enough nearer nodes, the beam widens. It does so among
              many vectors of hundreds of independent components.
   REMOVAL    A removed vector is never returned again, but its node still leads searches on, until a sweep has repaired
              the graph around it: every node with an edge to it gets edges to the three nearest of the removed one's
              neighbours instead. Then the slot is free. A sweep starts when 1/32 of the slots, and at least 32, are
              removed. Every remove advances it by 48 nodes, so of 1,000 slots or more no more than about 1/18 wait at
              any time. A search that takes long delays this: while one that may hold a removed slot is under way, no
              slot becomes free. `maintain` advances the sweep in idle time.
   IP         Under IP the graph itself is built by the inner product, so the longest vectors, which most queries want,
              are near to all others. Lengths may differ as they like, and grow.
   CODES      From 4,096 vectors on, a walk reads codes in place of the vectors: 4 bits for each component, so that the
              code of 128 floats is one cache line where the vector has eight. To make a code, the vector (IP and
              COSINE: its direction) has the mean of all taken off, is turned by a fixed rotation, and is rounded. Codes
              are chosen and remade by the index itself; config.code, query.rerank and query.exact_walk overrule it.
              - Slack. Rounding reorders near neighbours. 64 nodes are walked to, with beam 128 (or config.beam_build,
                if that is wider); in the order by code, each of their ten nearest is displaced by some places. The
                slack is the number of places that 199 of 200 of them do not exceed. It is measured when codes are made,
                and each insert updates it. For k above 10 it counts once for each ten.
              - Which codes. 4 bits are refused if they displace by more than 20 places, or one neighbour in ten by more
                than 8, as happens in clusters that are far closer within than between. Then 8 bits are tried, then
                none. There are none either where they save no cache line (vectors of up to 64 bytes).
              - When they are remade. When there are 8 times as many vectors; when as many have been inserted as there
                are; when as many inserted vectors as 1/16 of all do not fit the codes; when the codes displace 1/25 of
                the neighbours of inserted vectors by more than the slack. Each insert then makes 32 of the new codes,
                and a build makes all of them.
   RERANK     The nearest by code get their exact distance: first k and the slack (8 at least), then more, as long as
              one of those that remain may still belong to the k best. "May" means within 2.7 standard deviations (IP:
              4.6) of the difference between code and vector that this query has met so far. A beam that is narrower
              than k and the slack is widened to that. Under IP it is widened by 1/192 for each place of slack, as
              queries may be of another kind than the vectors. If even the last entry of a beam of 4 k or more may
              belong to the k best (within 1.5 standard deviations; IP: 2.6), the walk is repeated on the vectors. On
              disk it reads each vector that it measures.
   FILTER     A callback, or a bitmap, or both, say which ids may be returned. The search first asks about a sample of
              256. If a share s passes, the beam becomes 1/s times as wide; where that costs more than to look at every
              vector that passes, the search scans. So the results are right for any filter. A filter must give the same
              answer for the same id during one search.
   ON DISK    An index can be searched in its file, read-only. Opening reads little more than the header. Ids, codes and
              what else is kept in memory come in when they are first needed, or by nodedb_vamana_load. A file has one
              of two layouts:
              - RESIDENT: the graph too is kept in memory, and only exact vectors are read, for the rerank. One batch, k
                and the slack, begins before the walk ends (with a filter, and in search_many, after it). Then come 8 at
                a time, as long as the k best are uncertain.
              - PACKED: the graph stays on disk. Each row lies beside its vector in one block, so a read brings both. At
                most eight reads of a walk are under way, and the oldest four are expanded together. A cache holds nodes
                near the starts. `load` alone fills it, and searches use it when `load` is done. Until then a walk does
                not follow the edges of levels first, so `load` changes its route too, and not only its reads.
              - COLD. Without `load`, a search that first touches a part of what is kept in memory reads it: 64 KiB at
                once, by one pread after the other, even where io_uring reads the vectors. Other searches that need the
                same 64 KiB wait for it. So the first searches are slow, in both layouts.
              - MANY. search_many keeps the device busy: over a resident file some queries walk while the vectors of
                others are read (with a filter, they go one by one); over a packed one 16 walk side by side. A query to
                a resident file that is still uncertain after its batch is answered again at the end, alone, which costs
                its hops and reads once more.
              Section 12 says how many reads a query takes. Reads go past the page cache where the file system has
              O_DIRECT, unless open_config.no_direct or FETCH_MAPPED says otherwise. An index without codes is saved
              with 8-bit ones for this purpose. Where even those blur it, at any beam, the walk is repeated on the
              vectors, as under RERANK: a query to clusters of 600 equal codes takes 470 reads (resident) or 620
              (packed), where one that the codes tell apart takes 30 or 60. Where a scan reads less, the search scans.
              Every block is checked when it comes in. A damaged one is quarantined: searches pass over what is in it,
              count it and log it. A save may replace a file that is open: the opened index continues with the old one.
   SNAPSHOT   save_begin and save_step write a file in slices while the index changes. The file holds the index as it
              was at the beginning, with all that decides what comes next (the free slots and their order, the sweep,
              codes that are being made). So the log of the changes since, applied to the opened file, gives the same
              index.

4. API BY TASK
   make       nodedb_vamana_create, _destroy; _reserve makes room, _compact gives memory back
   change     nodedb_vamana_insert (replaces an id that is there), _remove, _maintain; _build (many at once, with
              threads), _build_bytes (the memory that a build takes at most)
   search     nodedb_vamana_searcher_create, _searcher_destroy, _searcher_memory_bytes; _search, _search_many,
              _search_range (all within a radius), _scan (exact)
   ask        nodedb_vamana_contains, _get (floats), _get_stored (as it is stored), _next (all ids); _count, _dim,
              _type_of, _metric_of, _kernel, _memory_bytes, _inspect
   files      nodedb_vamana_save, or in slices _save_begin, _save_step, _save_cancel; _open, _load, _verify
   fetchers   nodedb_vamana_fetcher_disk, or a struct of your own: where the exact vectors of a file come from
   kernels    nodedb_vamana_kernels_at, _kernels_usable: the distance functions themselves

   WHAT TO SET. Set dim, type and metric; the other defaults serve most data. Vectors need not be normalised. Use U8 or
   I8 for components that are bytes anyway. For more recall, set query.beam (128, 256); where that is not enough, degree
   (96, 128), which takes memory. To insert much at once, use nodedb_vamana_build.

   This program filters, saves, opens the file on disk, and searches there for the neighbours of a stored vector:

        #define NODEDB_VAMANA_IMPLEMENTATION
        #include <nodedb_vamana.h>
        #include <stdio.h>
        #include <string.h>

        static bool is_even(void *ctx, uint64_t id) {
            (void)ctx;
            return id % 2 == 0;
        }

        int main(void) {
            nodedb_vamana_config config;
            nodedb_vamana_open_config on_disk;
            nodedb_vamana_query query;
            nodedb_vamana_result results[3];
            nodedb_error err;
            uint32_t found = 0;
            bool more = true;
            memset(&config, 0, sizeof config);
            config.dim = 3, config.type = NODEDB_VAMANA_U8;
            nodedb_vamana *index = nodedb_vamana_create(&config, &err);
            if (index == NULL) return puts(err.message), 1;
            for (uint32_t i = 0; i < 200; i++) {
                const uint8_t colour[3] = {(uint8_t)i, (uint8_t)(i / 2), (uint8_t)(255 - i)};
                if (nodedb_vamana_insert(index, i, colour, &err) != NODEDB_OK) return puts(err.message), 1;
            }
            if (nodedb_vamana_save(index, "colours.index", NODEDB_VAMANA_PACKED, &err) != NODEDB_OK)
                return puts(err.message), 1;
            nodedb_vamana_destroy(index);

            memset(&on_disk, 0, sizeof on_disk);
            on_disk.mode = NODEDB_VAMANA_ON_DISK;
            index = nodedb_vamana_open("colours.index", &on_disk, &err);
            if (index == NULL) return puts(err.message), 1;
            while (more)
                if (nodedb_vamana_load(index, 1 << 20, &more, &err) != NODEDB_OK) return puts(err.message), 1;
            nodedb_vamana_searcher *searcher = nodedb_vamana_searcher_create(index, NULL, &err);
            if (searcher == NULL) return puts(err.message), 1;
            memset(&query, 0, sizeof query);
            query.by_id = true, query.id = 101; // the neighbours of vector 101; itself is one, unless it is filtered
            query.k = 3, query.filter = is_even;
            if (nodedb_vamana_search(searcher, &query, results, &found, NULL, &err) != NODEDB_OK)
                return puts(err.message), 1;
            for (uint32_t i = 0; i < found; i++) // prints 100, 102, 98
                printf("%u at distance %g\n", (unsigned)results[i].id, (double)results[i].distance);
            nodedb_vamana_searcher_destroy(searcher);
            nodedb_vamana_destroy(index);
            return remove("colours.index") == 0 ? 0 : 1;
        }

5. THREADS
   - One thread at a time changes an index: insert, remove, build, maintain, compact, reserve, save and its steps. Call
     it the writer. An index has no lock of its own; which thread is the writer may change, if the caller orders it.
   - Meanwhile any number of other threads search, each with a searcher of its own, and ask (everything under "ask" in
     section 4). Any thread makes and destroys searchers.
   - nodedb_vamana_destroy alone requires that no other call is running. The searchers are destroyed before it.
   - A search sees every change that was complete when the search began. Of changes made while it runs it may see any,
     so it may return a vector that is removed meanwhile, and of an id that is replaced the old vector, the new one,
     both, or neither. While an insert or a remove rewrites rows, it may also miss a vector to which only such a row
     leads; once the change is complete, the vector is reachable again. Id and distance of a result always belong
     together. What two calls say need not be of one moment.
   - Readers never wait for the writer. The writer waits for the searches under way when it replaces arrays: when it
     grows or compacts the index, takes new codes, removes the last vector, or withdraws what a cancelled or refused
     build had entered. Otherwise it does not wait: a sweep leaves the slots of removed vectors until those searches are
     over. While it waits it yields its CPU. So a filter must neither change the index nor wait for the writer, and
     threads that share a CPU must not starve each other by real-time priorities.
   - An index on disk never changes. Its searchers read through the io, and may log, from whatever thread uses them. One
     thread at a time may call `load`.
   - `build` starts threads, and joins them before it returns. They call no callback. The allocator is
     called by every thread that calls the index or a searcher of it.

6. MEMORY
   In memory, a slot takes:
       components      of the type, padded to 16 bytes; above 32 bytes to 32, from 256 bytes on to 64
       edges           4 R, R rounded up to 16
       code            4 bits: 32 for each 64 components, rounded up; 8 bits: 1 a component; padded like the vector
       id              8
       state           1; head of the row 4; parent in the tree 4
       table of ids    6 to 12
       length          4, unless the metric is L2
   So beyond the vector itself at most 4 R + dim / 2 + 32 + 29 bytes, with 4-bit codes and R a multiple of 16. For 128
   bytes and R = 64 that is 349; a million of them take 345.5. Arrays of 4 MiB and more ask for huge pages, which makes
   walks faster by a fifth and more.
   GROWING. Full arrays are copied into larger ones: twice as large below 64 slots, then 64 more, then 1/16 more.
   config.capacity or `reserve` avoids it. Removed slots are reused before the arrays grow; only `compact` shrinks them.
   While codes are remade there are two of each.
   ON DISK a slot takes its code, 13 bytes of state, id and head, 6 to 12 of table, 4 of length unless the metric is L2,
   its row in the resident layout, and 4.1 bytes for each block of the file. The packed layout has its cache as well, by
   default 1/32 of the records and at least 256 nodes. All of it is allocated when the file is opened, and touched when
   it is loaded.
   A SEARCHER takes 512 bytes for each entry of its beam for the visited table (16 to 256 KiB), 64 for each entry for
   its lists, and 80 R + 5 KB. It takes less where the index is small: one of one vector of 16 floats is 4.2 KB, and its
   searcher 1.6 KB. With config.beam_max set, or on disk, it has its full size at once (85 KB for a beam of 128). On
   disk it has also a pool of blocks, twice as many as its beam and at least 256, and an io_uring; search_many over a
   packed file adds the lists of 16 walkers.
   A BUILD takes, beside the index, 8 bytes for each vector, 24 R for each vector of a batch (2% of all; IP: 0.5%), and
   a searcher for each thread. nodedb_vamana_build_bytes says how much at most.
   WHO ALLOCATES. A search does not, but if its beam or k is larger than any before; if the index has outgrown the
   searcher's lists (until it has 65,536 slots); if removed vectors crowd so narrow a beam that it walks again with
   twice its width. search_many on disk also does if more queries wait than ever before, `get` on disk for the time of
   the call, and `inspect` for its count of the unreachable. An insert within the capacity allocates only for new codes.

7. ERRORS
   Every call that can fail returns a nodedb_status, or NULL, and explains it in the nodedb_error. Refused input changes
   nothing. A NaN or an infinity is refused, and its position is named. No call returns a NaN.
   Opened into memory, any damage in a file is NODEDB_ERR_CORRUPT, with path and offset. Only codes that were made for
   disk mode alone, the table of ids, and one of two copies of checksums or header, are not needed and not missed.
   Opened on disk, a file is refused only if both headers, the means of its codes, or both copies of the checksums of
   these means are damaged. Every other block is checked against its checksum when it is read. If it does not match, it
   is read a second time (except a vector or node under FETCH_MAPPED). A block that stays damaged is quarantined:
   searches pass over what is in it and say how often (stats.damaged), the logger is told of each block once, `inspect`
   counts them, and `verify` names them all. One block of checksums serves 1023 blocks: if both of its copies are lost,
   these 4 MiB of the file are quarantined, block by block, as they are read. A read that fails is repeated once; then
   the search fails with NODEDB_ERR_IO.

8. LIMITS
   - 65,535 components; 4,294,967,294 vectors; length of a vector 1e18.
   - R 4 .. 1024; beam_build up to 4,096; beam, k and results of a range up to 1,048,576; 256 threads in a build.
   - Sums of bytes are exact up to 2^24 (258 components of 255 squared), then rounded like any float.
   - Under COSINE the lengths of vectors below about 1e-38 lose digits in `get`.
   - Each kernel adds floats in another order, so graphs built on different CPUs may differ. With one kernel
     (config.kernel), one seed and the same calls they are the same.
   - Linux; little-endian or big-endian, 32 or 64 bits.

9. ON DISK
   Format version 4. Little-endian, in blocks of 4096 bytes; earlier versions are refused. A file of n blocks:

   | header | states | ids | norms | rows | heads | parents | means | codes | records | table | sums | sums | header |
     block 0  each section begins at a block; their offsets follow from the header's counts            again  block n-1

   The header, block 0, and the same again in the last block:
       offset  bytes  what
            0      8  "NDBVAMAN"
            8      4  version, 4
           12      4  dim
           16      4  type: 0 F32, 1 U8, 2 I8
           20      4  metric: 0 L2, 1 IP, 2 COSINE
           24      4  degree R
           28      4  beam_build
           32      4  alpha, float
           36      4  slot of the entry; 0xFFFFFFFF if the index is empty
           40      8  seed
           48      4  slots
           52      4  live slots
           56      4  removed slots
           60      4  zeros
           64    112  offsets of the thirteen sections below, and the file's size: fourteen u64
          176      4  bits of the codes in this file: 4 or 8; 0: none, as there are no vectors
          180      4  1: the index walks on them in memory; 0: there are none, or they are for disk mode only
          184      4  their step, float
          188      4  live slots when codes were last made, or found useless; 0: never
          192      4  vectors inserted since, at most 2^32 - 1
          196      4  of them, those that do not fit the codes
          200      8  live slots at which codes are made (again)
          208      4  passes of a build
          212      4  config.code: 0 AUTO, 1 NONE, 2 8BIT, 3 4BIT
          216      4  layout: 0 resident, 1 packed
          220      4  first free slot, or 0xFFFFFFFF
          224      4  state that a slot gets when it is removed now: 2 or 3
          228      4  sweep: 0 none, 1 repairing, 2 waiting for searches, 3 freeing
          232      4  slot that the sweep has reached
          236      4  bits of codes that are being made; 0: none
          240      4  their step, float; 0: not known yet, see offset 792
          244      4  slots that have them (a reader remakes them from the vectors)
          248      4  slack of the codes in this file, at most 127
          252      4  1: there are or were vectors of zeros (COSINE)
          256    256  64 slots where walks may begin beside the entry, then 0xFFFFFFFF
          512      4  nearest neighbours of new vectors that the slack was compared with ...
          516      4  ... and those that codes displaced by more
          520      4  nodes by which codes that are being made have been judged, at most 64 ...
          524    256  ... and of their nearest, u16 each, how many were displaced by 0, 1, ... 127 or more places
          780      4  beam that finds neighbours, if it adapts: beam_build .. 4 beam_build; 0: it is beam_build
          784      4  nearest neighbours that a beam of twice as many has found ...
          788      4  ... and those that the narrower one has not
          792      4  slots over which the sample is spread from which a coder without a step learns ...
          796      4  ... how many of the sample have been looked at ...
          800      4  ... and counted in the mean, which is in the section of means; 4 zeros follow
          808      8  their squared distances from the mean, added up, double
          816     80  squared errors of ten steps, added up, doubles
          896   3196  zeros; from 792 on, if no coder is learning
         4092      4  CRC-32C of the 4092 bytes before
   The sections, in this order, each padded with zeros to whole blocks:
       states     u8 per slot: 0 free, 1 live, 2 and 3 removed and not repaired yet (two colours, see offset 224)
       ids        u64 per slot; 0 if free
       norms      float per slot; no section for L2. IP: squared length. COSINE: F32 length; else 1 / length, and 0
                  for zeros
       rows       resident: u32 per slot and R rounded up to 16: the slots of its neighbours, then 0xFFFFFFFF. Of a free
                  slot: the next free one, then 0xFFFFFFFF
       heads      4 bytes per slot. Of the edges that are not of a level, (1) how many at the front passed the strict
                  rule and (2) how many passed either rule when the row was pruned (255: or more); (3) how many edges in
                  front of these are of the node's levels; (4) its level, 0 to 5
       parents    u32 per slot: the slot whose row holds this one for certain; 0xFFFFFFFF for the entry, and for slots
                  that are not live
       means      float per component: of the codes; then of those that are being made
       codes      per slot. 4 bits: ceil(dim / 64) times 32 bytes; byte b of group k has component 64 k + b in its low
                  half and 64 k + 32 + b in its high one. 8 bits: u8 per component. Padded with zeros to a multiple of
                  16, above 32 bytes of 32, from 256 bytes on of 64. Value v of component i stands for (v - 7.5) or
                  (v - 127.5) steps of component i of the vector (IP and COSINE: of length 1) less the mean, turned as
                  nodedb_vamana__turn does
       records    the vector as stored (COSINE over F32: of length 1). Packed: then zeros up to a multiple of 4, and the
                  row, u32 and R. Records of up to 4096 bytes do not cross a block: as many as fit, then zeros. Longer
                  ones begin at a block each
       table      u32 each, as many as the least power of two from 16 on that is at least 1.5 times the slots: the live
                  slots by id, at place nodedb_mix64(id) modulo their number or the next one that was empty; else
                  0xFFFFFFFF
       checksums  blocks of 1023 u32: the CRC-32C of each block from 1 to the last of the table, then zeros; and the
                  CRC-32C of those 4092 bytes, which starts from the number of this block within the section, plus 1
       checksums  the same again
       header     the same again
   Ids, norms, codes and vectors of free slots are zeros. A reader refuses a file whose size or offsets differ from what
   the counts say, or whose parents do not lead from every live slot to the entry.
   nodedb_vamana_save writes PATH.tmp, syncs it, renames it to PATH, and syncs the directory.

10. BUILDING
   Include this header before any system header, or compile with -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64. Include it in any
   number of files, in C99 or C++11; define NODEDB_VAMANA_IMPLEMENTATION in exactly one. Include for yourself what you
   use of libc.
   Compile and link: cc -std=c99 -O2 -I. quick.c -luring -lpthread -lm
   Without liburing: cc -std=c99 -O2 -I. -DNODEDB_NO_LIBURING quick.c -lpthread -lm
   On 32-bit machines whose compiler calls a library for 64-bit atomics (some Arm, MIPS, RISC-V) add -latomic. No flag
   for the CPU is needed: the kernels for AVX2, AVX-512 and NEON are chosen when the index is created. -DNDEBUG removes
   the assertions.
   NODEDB_VAMANA_IMPLEMENTATION  in one file: the implementation
   NODEDB_VAMANA_STATIC          the implementation is private to this file; needs the macro above in the same file
   NODEDB_VAMANA_API             what stands before each function instead of extern: an export attribute, for instance
   NODEDB_VAMANA_NO_DISK         leaves out searching on disk: to open with NODEDB_VAMANA_ON_DISK is
                                 NODEDB_ERR_UNSUPPORTED, and there is no nodedb_vamana_load and no _fetcher_disk.
                                 Files of both layouts are saved, and opened into memory, as always. verify opens in
                                 memory too, so it takes the memory of the index, and does not read the table of ids:
                                 it checks the checksums of the table, not whether the table fits the ids
   NODEDB_VAMANA_NO_SIMD         leaves out the kernels for each CPU; the ones in plain C remain
   NODEDB_NO_LIBURING            without io_uring: on disk, reads go one by one with pread, or through a mapping

11. DEPARTURES
   DiskANN is Subramanya et al., NeurIPS 2019; FreshDiskANN is Singh et al., 2021; ParlayANN is Manohar et al., PPoPP
   2024; IP-DiskANN is Xu et al., 2025; HNSW is Malkov and Yashunin, 2016. Where nothing else is said, a figure was
   measured once, on sift10k or sift100k (real SIFT, 128 bytes each), when the choice was made.
   a. ONE PASS. A build makes one pass, with the final alpha, from an empty graph, as ParlayANN does. DiskANN makes two,
      from a random graph.
   b. LEVELS. Candidates for a row are the final beam. DiskANN also keeps all nodes that were expanded on the way, for
      their long edges. Here long edges come from the levels, as in HNSW, but in one graph and one row. Among 20
      clusters of 1,000 vectors that come one after the other, a walk with beam 64 finds 0.50 by the final beam alone,
      and all but one in a thousand with levels. How wide a beam searches a level for a new node's neighbours decides
      whether clusters are found: 200,000 vectors of 768 floats in 1,000 clusters, beam 64, 0.970 with 48 entries and
      1.000 with 128. The two tiers of pruning (alpha 1 first; in DiskANN's code, not in its paper) are kept too.
   c. SORTED BEAM. The beam is a sorted array with binary search and memmove, not a heap. At these widths a move is one
      cache line or two, and the next node to expand is found by counting on.
   d. FORGETFUL SET, STARTS. The visited set is a small table that forgets, as ParlayANN's does; the comment of
      nodedb_vamana__walk_over says why that is exact. It has 128 places for each entry of the beam, at least 4,096;
      with a quarter of that, a query on a million vectors measured 8% more distances for the same recall. A walk begins
      at the entry, which is any node, and at the nearest of up to 64 nodes of the highest levels. It does not begin at
      a medoid, which may lie in another cluster than all the rest.
   e. SPARE PLACES. A full row that gets one more edge is pruned to 7/8 of R (in a build 15/16), not to R. In high
      dimensions pruning drops little, and otherwise every insert would prune each of its neighbours again. Edges that
      one pruning chose together are not tried against each other again: the same graph, for a seventh of
      the distances (100,000 vectors: 1,000 for each instead of 7,000) and two thirds of the time.
   f. EQUAL VECTORS. Of vectors equal to a node's own, 3 are kept; they occlude no other candidate, and ties are broken
      at random. By the paper's rule one is kept. With 2,000 equal vectors among 2,000 others, 16 dimensions, built in a
      batch, six seeds, a search for each of the others with beam 64 misses 2.6% instead of 9.7% (L2), 0.7% instead of
      7.3% (COSINE).
   g. REMOVAL. FreshDiskANN prunes the union of all neighbours' neighbours (some 250 candidates) for nearly every node.
      Here each lost edge is replaced by edges to the 3 nearest of the lost node's neighbours (IP-DiskANN's c), and only
      a row that overflows is pruned. IP-DiskANN finds in-neighbours by a search, and misses some; the sweep visits all
      nodes. 50,000 SIFT vectors of which 5% are replaced by others fifty times over: recall@10 at beams 10, 16, 32, 64
      is 0.845, 0.955, 0.991, 0.998 (a fresh build's 0.849, 0.960, 0.994, 0.999), memory 1.06 of a fresh build's.
   h. IP. DiskANN builds by L2, over vectors with one more component that makes all equally long. That crowds short
      vectors together, and a walk among them finds no way out (recall@10 0.14 at beam 256 where lengths are
      log-normal). Here graph and walk go by the inner product (as ip-NSW, Morozov and Babenko, NeurIPS 2018). The rule
      for a row is that of L2, with |c|^2 - <u, c> in place of the distance from u to c, which is the same for vectors
      of equal length. The relaxed rule occludes a candidate only if the squared distance does so too. The neighbours
      of a removed vector are tied to one another before it goes, as it may have been the only way to them.
   i. DISK. DiskANN keeps product-quantised codes in memory, and reads a node's edges and vector together at each hop.
      So does the packed layout, with scalar codes. The resident layout keeps the edges in memory too, and a query reads
      one batch, which begins before the walk ends, and a few more vectors where it is uncertain: more memory, one round
      trip instead of eight. DiskANN chooses the nodes to cache by sample queries, or breadth first from the medoid;
      here it is breadth first from all places where walks begin. search_many gives the device reads to do at all times:
      packed, its queries walk side by side; resident, they walk one after the other while the vectors of others are
      read.
   j. CODES. RaBitQ (Gao and Long, SIGMOD 2024) has one bit for each component of the turned vector, and a correction
      for each vector. Here are 4 bits and no correction, so that a code of 128 components is one cache line. What
      RaBitQ proves about its error, a query here measures. Product quantisation was measured beside it, by
      tests/bench/codes_beside_pq.py on sift100k: of the true ten, the ten nearest by code alone have 0.879 with these
      4 bits, 0.892 with as many bytes of PQ (64 parts), 0.793 with half of them, 0.430 with RaBitQ's single bits. But a
      distance by PQ looks into 64 tables, and PQ trains for 123 s, these codes for 1. Among 1,000 clusters of 50
      vectors each, wider than near duplicates, 4 bits blur a narrow beam: recall@10 0.956 at beam 24 and 0.9997 at 48,
      where a walk on vectors has 1. float16 was left out, as the walk reads codes, not vectors.

12. MEASURED
   Recall is recall@10. hnswlib has M 32, efConstruction 200, and is built with -O3 -march=native.
   HARD KINDS of vectors, over which graph indexes stumble; they are made by the benchmark. Recall at beams 64 and 256,
   inserted one by one, and after every vector was replaced once; hnswlib with ef 64 and 256:
       ./build.sh bench vamana --hard --how insert,replaced --beams 64,256           (20,000 of 128 floats)
       20,000 of 128       inserted       replaced       hnswlib
       lengths, IP         0.985 1.000    0.988 1.000    0.973 1.000    lengths log-normal
       lengths-mix, IP     1.000 1.000    1.000 1.000    1.000 1.000    the same around 100 centres
       zeros, COSINE       0.771 0.986    0.768 0.989    0.720 0.975    one in 200 is all zeros
       topics, L2          1.000 1.000    0.999 1.000    0.947 0.950    20 tight clusters, one after the other
       tight, COSINE       0.993 1.000    0.992 1.000    0.985 1.000    8 clusters, far closer within than between
       many-tight, L2      1.000 1.000    1.000 1.000    1.000 1.000    100 clusters of 200
       crowd, L2           0.863 0.983    0.871 0.984    0.808 0.954    a tenth are copies of 5 vectors
       foreign, IP         0.909 0.998    0.859 0.994    0.844 0.994    queries of another distribution
       outliers, COSINE    0.995 0.999    0.994 0.997    0.994 0.998    three components 20 times as large
       line, L2            1.000 1.000    1.000 1.000    1.000 1.000    8 dimensions bent into 128
   On codes and on vectors it is the same within 0.005, but for `crowd` at beam 64: 0.0058 of these 500 queries, and
   0.0046 of 4,000. A walk measures 0.5 to 1.34 times as many distances as hnswlib's, and 1.4 times where that finds
   0.954 and this 0.999. Inserted, in higher dimensions:
       ./build.sh bench vamana --hard --how insert --beams 64,256 --dim 768          (and --n 200000)
                           20,000 of 768  hnswlib        200,000 of 768 hnswlib
       lengths             0.941 0.999    0.930 0.998    0.853 0.985    0.836 0.984
       topics              0.998 1.000    0.978 0.987    0.825 0.984    0.805 0.962
       tight               0.971 0.999    0.960 1.000    0.683 0.947    0.685 0.947
       many-tight          1.000 1.000    1.000 1.000    1.000          0.997 1.000
       outliers            0.996 0.999    0.993 0.996    0.970 0.977    0.945 0.969
       crowd               0.735 0.945    0.721 0.937
       foreign             0.590 0.953    0.513 0.888
       zeros               0.376 0.799    0.369 0.773
   PEERS. Queries/s of one core with AVX-512 at recall 0.95 and 0.99, beside hnswlib and SymphonyQG (rabitqlib 0.7.1,
   degree 32); 20,000 of 768 floats are built in a batch. For a kind, and with --base, --query and --gt for a set in
   files (tests/bench/make_glosses.py makes the text embeddings):
       ./build.sh bench vamana --hard --kind topics --dim 768 --how build --beams 10,16,24,32,48,64,96,128,192,256
       tests/bench/ann_peers.py --kind topics --dim 768
                                               ours            SymphonyQG      hnswlib
       sift100k, 128 bytes                     57,000 31,800   41,000 23,200   13,100  6,700
       114,697 text embeddings, 384 floats     29,800 20,100   48,400 23,100    7,600  3,800
       topics, 768 floats                      16,300 12,700    4,600  3,000    3,300      -
       lengths, 768 floats                      9,400  6,300    9,100  4,400    1,260    640
       outliers, 768 floats                    26,700 25,400    9,900      -    9,800  4,300
       tight, 768 floats                       10,700  7,400        -      -    2,070  1,550
   SIFT AND TEXT beside hnswlib in alternating rounds; two cores of an AMD EPYC with AVX2. Queries/s of one core at
   recall 0.95 and 0.99, and how many times hnswlib's that is, which takes bytes as floats:
       ./build.sh bench vamana --base FILE --query FILE --gt FILE                    (a million: format 3)
                                               ours            hnswlib         times
       a million SIFT, 128 bytes               18,900  9,800    3,540  1,630   5.2  6.0
       a million SIFT, 128 floats              18,900  9,860    3,540  1,630   5.3  6.1
       sift100k, 128 bytes                     36,000 18,700   10,400  4,670   4.0  4.1
       114,697 text embeddings, 384 floats     24,700 14,500                   3.4  4.7
   Two threads answer 2.0 times as many as one. On exact vectors a query among a million measures 1,325 distances at
   recall 0.956. Building the million with two threads takes 114 s (bytes) and 155 s (floats), hnswlib 475 s. Inserting
   100,000 one by one goes at 5,300/s, with recall 0.988 at beam 32; hnswlib at 1,970/s, with 0.973 for as much work.
   Beside format 3, version 4 answers 0.99 and 1.06 times as many queries/s on the million, a build took 0.94 of its
   time and takes 1.08 times as long as that since, an insert 1.05 times, and a vector takes 7 bytes more (473). As AVX2
   turns the query, 40,000 text embeddings get 1.2 times as many queries/s at beams 10 and 16, with the same results.
   ON DISK, a million SIFT floats, past the page cache. "Of the device" is the share of what a bare io_uring with 64
   reads in flight gives in the same run (51,000 to 54,000 reads/s). Recall 0.956 (resident) and 0.959 (packed), beam
   28:
       ./build.sh bench vamana --base FILE --query FILE --gt FILE --only disk --dir DIR
                                       reads a query   queries/s   of the device   p99, ms   memory, MB
       resident, one query                 24.6         1,660          0.80          1.4         342
       resident, 16 to a call              24.6         2,440          1.17         10.5         341
       packed, one query                   32.0           640          0.38          4.4         116
       packed, 16 to a call                32.0         1,570          0.92         14.2         115
       packed, all in one call             32.0         1,630          0.96                      111
   The file is opened in 0.7 ms, and loaded in 1.2 to 2 s; the floats alone are 512 MB. pread finds the same with 0.2 of
   the device, and a mapping as much. Since these were measured (format 3), sift100k in alternating runs: packed, one
   query, 1.25 times as many queries/s at beam 24, which now finds 0.986 instead of 0.981, and 1.4 times at beam 64;
   resident 1.05 times. What 24 reads give that are all waited for before the next is 0.83 of the device.
   PAUSES. The longest insert while the first codes of 768 floats are made takes 3.3 ms of CPU, when four nodes judge
   them (120 ms when codes were trained in one go); the mean is 0.6 ms (measured once). A save of 100,000 SIFT bytes, in
   either layout, in steps of 64 vectors beside another program: the longest step takes 5 to 10 ms (worst_slice_ms of
   the command above).

13. LICENCE
   Public domain (Unlicense) or MIT, at your choice; both texts stand at the end of this file.
*/
/* ===================================================================================================================
 * BEGIN NODEDB BASE BLOCK: statuses, errors, memory, sentences, time. The same words in every nodedb_*.h, behind one
 * guard, so that any set of them compiles together; `./build.sh sync` copies it from nodedb_wal.h.
 * ================================================================================================================ */
#ifndef NODEDB_VERSION
#define NODEDB_VERSION "0.2.0"
#define NODEDB_VERSION_NUMBER 200 /* major * 10000 + minor * 100 + patch */

#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* O_DIRECT, CPU affinity, madvise: must be seen before the first system header */
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* files over 2 GiB on 32-bit systems */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NODEDB_CACHE_LINE_BYTES 64       /* what two threads must not share; 128 would also cover paired prefetch */
#define NODEDB_ERROR_MESSAGE_BYTES 256   /* longest sentence in nodedb_error, its final zero included */

/* What a call answers. Zero is success; every other value is explained by the nodedb_error that the caller passed. */
typedef enum nodedb_status {
    NODEDB_OK = 0,
    NODEDB_ERR_INVALID,     /* an argument is wrong: nothing was done */
    NODEDB_ERR_STATE,       /* the object is not in a state that allows this call (closed, failed, degraded ...) */
    NODEDB_ERR_NO_MEMORY,   /* the allocator refused */
    NODEDB_ERR_LIMIT,       /* a limit with a name would be passed: a budget, a table, a payload size */
    NODEDB_ERR_AGAIN,       /* not now: a bounded queue is full, or there is nothing to do yet; try later */
    NODEDB_ERR_NOT_FOUND,   /* no such record, file, engine, handle or id */
    NODEDB_ERR_EXISTS,      /* it is there already */
    NODEDB_ERR_LOCKED,      /* another process or object owns it */
    NODEDB_ERR_IO,          /* the system refused a read, write, sync or map; see sys_errno */
    NODEDB_ERR_DISK_FULL,   /* no space left on the device, or quota used up; goes away when there is room */
    NODEDB_ERR_CORRUPT,     /* stored data is not what was written: see offset and lsn */
    NODEDB_ERR_UNSUPPORTED, /* this system, file system or build cannot do it */
    NODEDB_ERR_FAULT,       /* a task panicked or faulted and was abandoned */
    NODEDB_ERR_DEGRADED,    /* refused at once, because of earlier faults */
    NODEDB_ERR_TIMEOUT,     /* the deadline passed */
    NODEDB_ERR_CANCELLED,   /* the caller, or a stop, asked for it */
    NODEDB_ERR_KEY          /* an encryption key is missing or does not fit */
} nodedb_status;

/* Why a call failed, for a program and for a person. The caller owns it, passes it or NULL; it is written only on
 * failure. `message` is one sentence: what failed, on which path, where. `offset` and `lsn` are 0 where they mean
 * nothing; `sys_errno` is the system's errno or 0. */
typedef struct nodedb_error {
    nodedb_status status;
    int sys_errno;
    uint64_t offset; /* bytes from the start of the file that the message names */
    uint64_t lsn;
    char message[NODEDB_ERROR_MESSAGE_BYTES];
} nodedb_error;

/* Where memory comes from. Zeroed: posix_memalign and free. `alloc` returns `bytes` bytes aligned to `align` (a power
 * of two, at least sizeof(void *)) or NULL; `release` gets the same `bytes` back. Called from the threads that the
 * header's manual names. */
typedef struct nodedb_allocator {
    void *(*alloc)(void *ctx, size_t bytes, size_t align);
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
} nodedb_allocator;

typedef enum nodedb_log_level { NODEDB_LOG_INFO = 0, NODEDB_LOG_WARNING, NODEDB_LOG_ERROR } nodedb_log_level;
/* Where sentences for a person go (what fell back and why, what was dropped). Zeroed: nowhere. */
typedef struct nodedb_logger {
    void (*write)(void *ctx, nodedb_log_level level, const char *sentence);
    void *ctx;
} nodedb_logger;

/* The clock. Zeroed: CLOCK_MONOTONIC. Nanoseconds that never go back; tests pass a virtual one. */
typedef struct nodedb_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} nodedb_clock;

/* The name of a status as a sentence; never NULL. Any thread. */
static inline const char *nodedb_status_text(nodedb_status status) {
    static const char *const texts[] = {
        "success", "an argument is wrong", "the object's state does not allow this call", "out of memory",
        "a limit would be passed", "not now, try again", "not found", "exists already", "locked by another",
        "input or output failed", "no space left on the device", "stored data is damaged", "not supported here",
        "the task faulted and was abandoned", "refused, degraded after repeated faults", "the deadline passed",
        "cancelled", "an encryption key is missing or does not fit"};
    return (size_t)status < sizeof texts / sizeof texts[0] ? texts[status] : "unknown status";
}
#elif NODEDB_VERSION_NUMBER != 200
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS. A program that defines NODEDB_COMMON_TOOLS before it includes a header may use what has one underscore here
 * and in the storage block. What has two is private.
 *     nodedb_fail, nodedb_io_status, nodedb_say    fill an error; the status of an errno; tell a logger
 *     nodedb_now_ns                                the clock of a config; NULL: CLOCK_MONOTONIC
 *     nodedb_mix64                                 a mixer for seeds and hashes; no secret */
#if !defined(NODEDB_BASE_INTERNALS) &&                                                                               \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) || defined(NODEDB_TPC_IMPLEMENTATION) || \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_PREFETCH_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_BASE_INTERNALS 1
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include nodedb_*.h before any system header, or compile with -D_GNU_SOURCE"
#endif

/* ThreadSanitizer does not know fences: where an argument stands on one, another way is taken under it. */
#if defined(__SANITIZE_THREAD__)
#define NODEDB__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NODEDB__TSAN 1
#endif
#endif
#define nodedb__load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define nodedb__load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define nodedb__store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define nodedb__store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define nodedb__add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define nodedb__cas(p, expected, v) \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* Fills `err` (if there is one) and returns `status`, so that `return nodedb_fail(...)` reads as one step. */
__attribute__((format(printf, 4, 5))) static inline nodedb_status
nodedb_fail(nodedb_error *err, nodedb_status status, int sys_errno, const char *format, ...) {
    char reason[96] = "unknown error";
    const char *why = reason;
    va_list args;
    int used;
    if (err == NULL) return status;
    memset(err, 0, sizeof *err);
    err->status = status, err->sys_errno = sys_errno;
    va_start(args, format);
    used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (sys_errno == 0 || used < 0 || (size_t)used + 4 >= sizeof err->message) return status;
#if defined(__GLIBC__)
    why = strerror_r(sys_errno, reason, sizeof reason);
#else
    (void)strerror_r(sys_errno, reason, sizeof reason);
#endif
    (void)snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", why);
    return status;
}

__attribute__((format(printf, 3, 4))) static inline void
nodedb_say(const nodedb_logger *logger, nodedb_log_level level, const char *format, ...) {
    char sentence[NODEDB_ERROR_MESSAGE_BYTES * 2];
    va_list args;
    if (logger == NULL || logger->write == NULL) return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    logger->write(logger->ctx, level, sentence);
}

static inline void *nodedb__alloc(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = NULL;
    if (bytes == 0) bytes = 1;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (allocator != NULL && allocator->alloc != NULL) return allocator->alloc(allocator->ctx, bytes, align);
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}
static inline void *nodedb__alloc_zero(const nodedb_allocator *allocator, size_t bytes, size_t align) {
    void *memory = nodedb__alloc(allocator, bytes, align);
    return memory != NULL ? memset(memory, 0, bytes) : NULL;
}
static inline void nodedb__release(const nodedb_allocator *allocator, void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (allocator == NULL || allocator->release == NULL) free(memory);
    else allocator->release(allocator->ctx, memory, bytes == 0 ? 1 : bytes);
}

static inline uint64_t nodedb_now_ns(const nodedb_clock *clock) {
    struct timespec t;
    if (clock != NULL && clock->now_ns != NULL) return clock->now_ns(clock->ctx);
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* A small mixer for seeds and hashes: splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t nodedb_mix64(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* A system call that a signal may cut off: again, until it was not. */
#define nodedb__retry(result, call) do (result) = (call); while ((result) < 0 && errno == EINTR)
/* The status that an errno means. */
static inline nodedb_status nodedb_io_status(int error) {
    if (error == ENOSPC || error == EDQUOT) return NODEDB_ERR_DISK_FULL;
    return error == ENOMEM ? NODEDB_ERR_NO_MEMORY : NODEDB_ERR_IO;
}
#endif
/* END NODEDB BASE BLOCK =========================================================================================== */

/* ===================================================================================================================
 * BEGIN NODEDB STORAGE BLOCK: files, checksums, byte order. The same words in the headers that store: nodedb_wal.h,
 * which has the master, nodedb_mem.h and nodedb_vamana.h.
 * ================================================================================================================ */
#ifndef NODEDB_STORAGE_BLOCK
#define NODEDB_STORAGE_BLOCK 1

/* The file system. Zeroed: the system's own. Tests put a simulated disk here and fail every call in turn. Each function
 * returns a value >= 0, or -errno; a read or write may be short, as in POSIX. `flags` are those of open(2); `sync`
 * makes the data of a file, or the entries of a directory, durable; `allocate` makes space exist, so that writing into
 * it cannot fail for want of room; `list` calls `visit` for each entry but "." and "..", until it returns nonzero;
 * `lock` takes an exclusive lock that dies with the descriptor, or returns -EWOULDBLOCK at once. */
typedef struct nodedb_io {
    int (*open)(void *ctx, const char *path, int flags, int mode);
    int (*close)(void *ctx, int fd);
    int64_t (*pread)(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset);
    int64_t (*pwrite)(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset);
    int (*sync)(void *ctx, int fd);
    int (*allocate)(void *ctx, int fd, uint64_t offset, uint64_t bytes);
    int (*truncate)(void *ctx, int fd, uint64_t bytes);
    int64_t (*size)(void *ctx, int fd);
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*make_dir)(void *ctx, const char *path, int mode);
    int (*list)(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name), void *visitor);
    int (*lock)(void *ctx, int fd);
    void *ctx;
} nodedb_io;

#elif NODEDB_STORAGE_BLOCK != 1
#error "two nodedb_*.h of different releases are included together: take all of them from one release"
#endif

/* TOOLS, with NODEDB_COMMON_TOOLS defined:
 *     nodedb_put_u16, _u32, _u64, nodedb_get_u16, _u32, _u64    little-endian, at any address
 *     nodedb_crc32c                                             the checksum of all our formats */
#if !defined(NODEDB_STORAGE_INTERNALS) &&                                                                              \
    (defined(NODEDB_WAL_IMPLEMENTATION) || defined(NODEDB_MEM_IMPLEMENTATION) ||                                       \
     defined(NODEDB_VAMANA_IMPLEMENTATION) || defined(NODEDB_COMMON_TOOLS))
#define NODEDB_STORAGE_INTERNALS 1
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A compiler that stops here had a 32-bit system's headers included before ours, without -D_FILE_OFFSET_BITS=64: files
 * over 2 GiB would be written at wrong offsets. */
typedef char nodedb__off_t_has_8_bytes[sizeof(off_t) == 8 ? 1 : -1];

/* Little-endian on disk, whatever the machine. */
static inline void nodedb_put_u16(void *at, uint16_t v) {
    unsigned char *p = (unsigned char *)at;
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}
static inline void nodedb_put_u32(void *at, uint32_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u16(p, (uint16_t)v);
    nodedb_put_u16(p + 2, (uint16_t)(v >> 16));
}
static inline void nodedb_put_u64(void *at, uint64_t v) {
    unsigned char *p = (unsigned char *)at;
    nodedb_put_u32(p, (uint32_t)v);
    nodedb_put_u32(p + 4, (uint32_t)(v >> 32));
}
static inline uint16_t nodedb_get_u16(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}
static inline uint32_t nodedb_get_u32(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u16(p) | (uint32_t)nodedb_get_u16(p + 2) << 16;
}
static inline uint64_t nodedb_get_u64(const void *at) {
    const unsigned char *p = (const unsigned char *)at;
    return nodedb_get_u32(p) | (uint64_t)nodedb_get_u32(p + 4) << 32;
}

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, polynomial 0x82F63B78. `crc` is 0 to begin with, or the
 * value of the bytes before these. The CPU's own instruction where it has one, asked at run time; else four bits a
 * step from a table of 16. */
static inline uint32_t nodedb__crc32c_plain(uint32_t crc, const unsigned char *p, size_t bytes) {
    static const uint32_t step[16] = {
        0x00000000u, 0x105EC76Fu, 0x20BD8EDEu, 0x30E349B1u, 0x417B1DBCu, 0x5125DAD3u, 0x61C69362u, 0x7198540Du,
        0x82F63B78u, 0x92A8FC17u, 0xA24BB5A6u, 0xB21572C9u, 0xC38D26C4u, 0xD3D3E1ABu, 0xE330A81Au, 0xF36E6F75u};
    while (bytes-- > 0) {
        crc ^= *p++;
        crc = crc >> 4 ^ step[crc & 15];
        crc = crc >> 4 ^ step[crc & 15];
    }
    return crc;
}
#if defined(__x86_64__)
/* The instruction has a latency of three cycles and can begin every cycle, so three parts are summed side by side, and
 * joined: a sum is moved over n bytes by a carry-less product with x^(8n-33) mod P and one more crc32 (Gopal et al.,
 * "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", Intel, 2011). 7.6 GB/s become 18. */
#define NODEDB__CRC_PART_BYTES 256
typedef long long nodedb__crc_pair __attribute__((vector_size(16)));
__attribute__((target("sse4.2,pclmul"))) static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p,
                                                                                   size_t bytes) {
    const nodedb__crc_pair over = {0xDD7E3B0C, 0xB9E02B86}; /* x^(8*512-33), x^(8*256-33) */
    uint64_t a = crc, b, c, word;
    size_t i;
    for (; bytes >= 3 * NODEDB__CRC_PART_BYTES; bytes -= 3 * NODEDB__CRC_PART_BYTES) {
        nodedb__crc_pair sums, moved;
        for (i = 0, b = c = 0; i < NODEDB__CRC_PART_BYTES; i += 8, p += 8) {
            memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
            memcpy(&word, p + NODEDB__CRC_PART_BYTES, 8), b = __builtin_ia32_crc32di(b, word);
            memcpy(&word, p + 2 * NODEDB__CRC_PART_BYTES, 8), c = __builtin_ia32_crc32di(c, word);
        }
        p += 2 * NODEDB__CRC_PART_BYTES;
        sums[0] = (long long)a, sums[1] = (long long)b;
        moved = __builtin_ia32_pclmulqdq128(sums, over, 0x00) ^ __builtin_ia32_pclmulqdq128(sums, over, 0x11);
        a = __builtin_ia32_crc32di(0, (uint64_t)moved[0]) ^ c;
    }
    for (; bytes >= 8; bytes -= 8, p += 8) memcpy(&word, p, 8), a = __builtin_ia32_crc32di(a, word);
    for (crc = (uint32_t)a; bytes > 0; bytes--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#define nodedb__crc32c_cpu_present() (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
static inline uint32_t nodedb__crc32c_cpu(uint32_t crc, const unsigned char *p, size_t bytes) {
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word = nodedb_get_u64(p);
        __asm__("crc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    }
    for (; bytes > 0; bytes--) __asm__("crc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p++));
    return crc;
}
#define nodedb__crc32c_cpu_present() 1
#else
#define nodedb__crc32c_cpu nodedb__crc32c_plain
#define nodedb__crc32c_cpu_present() 0
#endif
static inline uint32_t nodedb_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    crc = ~crc;
    crc = nodedb__crc32c_cpu_present() ? nodedb__crc32c_cpu(crc, p, bytes) : nodedb__crc32c_plain(crc, p, bytes);
    return ~crc;
}

/* The system's file calls behind nodedb_io: the same, with EINTR retried and -errno returned. */
static inline int nodedb__posix_open(void *ctx, const char *path, int flags, int mode) {
    int fd;
    (void)ctx;
    nodedb__retry(fd, open(path, flags | O_CLOEXEC, mode));
    return fd < 0 ? -errno : fd;
}
static inline int nodedb__posix_close(void *ctx, int fd) {
    (void)ctx;
    return close(fd) != 0 && errno != EINTR ? -errno : 0;
}
static inline int64_t nodedb__posix_pread(void *ctx, int fd, void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pread(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int64_t nodedb__posix_pwrite(void *ctx, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    ssize_t n;
    (void)ctx;
    nodedb__retry(n, pwrite(fd, buffer, bytes, (off_t)offset));
    return n < 0 ? -errno : (int64_t)n;
}
static inline int nodedb__posix_sync(void *ctx, int fd) {
    (void)ctx;
    return fdatasync(fd) != 0 ? -errno : 0; /* never retried: after a failure the kernel has dropped the pages */
}
static inline int nodedb__posix_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes) {
    int error;
    (void)ctx;
    do error = posix_fallocate(fd, (off_t)offset, (off_t)bytes);
    while (error == EINTR);
    return -error;
}
static inline int nodedb__posix_truncate(void *ctx, int fd, uint64_t bytes) {
    int result;
    (void)ctx;
    nodedb__retry(result, ftruncate(fd, (off_t)bytes));
    return result != 0 ? -errno : 0;
}
static inline int64_t nodedb__posix_size(void *ctx, int fd) {
    struct stat st;
    (void)ctx;
    return fstat(fd, &st) != 0 ? -errno : (int64_t)st.st_size;
}
static inline int nodedb__posix_rename(void *ctx, const char *from, const char *to) {
    (void)ctx;
    return rename(from, to) != 0 ? -errno : 0;
}
static inline int nodedb__posix_unlink(void *ctx, const char *path) {
    (void)ctx;
    return unlink(path) != 0 ? -errno : 0;
}
static inline int nodedb__posix_make_dir(void *ctx, const char *path, int mode) {
    (void)ctx;
    return mkdir(path, (mode_t)mode) != 0 ? -errno : 0;
}
static inline int nodedb__posix_list(void *ctx, const char *dir, int (*visit)(void *visitor, const char *name),
                                     void *visitor) {
    DIR *stream = opendir(dir);
    struct dirent *entry;
    int stop = 0, error;
    (void)ctx;
    if (stream == NULL) return -errno;
    for (errno = 0; stop == 0 && (entry = readdir(stream)) != NULL; errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) stop = visit(visitor, entry->d_name);
    error = stop == 0 ? errno : 0;
    (void)closedir(stream);
    return -error;
}
static inline int nodedb__posix_lock(void *ctx, int fd) {
    (void)ctx;
    return flock(fd, LOCK_EX | LOCK_NB) != 0 ? -errno : 0;
}

/* The caller's file system, with the system's own call wherever he left a NULL. */
static inline nodedb_io nodedb__io_or_posix(const nodedb_io *io) {
    nodedb_io full;
    memset(&full, 0, sizeof full);
    if (io != NULL) full = *io;
    if (full.open == NULL) full.open = nodedb__posix_open;
    if (full.close == NULL) full.close = nodedb__posix_close;
    if (full.pread == NULL) full.pread = nodedb__posix_pread;
    if (full.pwrite == NULL) full.pwrite = nodedb__posix_pwrite;
    if (full.sync == NULL) full.sync = nodedb__posix_sync;
    if (full.allocate == NULL) full.allocate = nodedb__posix_allocate;
    if (full.truncate == NULL) full.truncate = nodedb__posix_truncate;
    if (full.size == NULL) full.size = nodedb__posix_size;
    if (full.rename == NULL) full.rename = nodedb__posix_rename;
    if (full.unlink == NULL) full.unlink = nodedb__posix_unlink;
    if (full.make_dir == NULL) full.make_dir = nodedb__posix_make_dir;
    if (full.list == NULL) full.list = nodedb__posix_list;
    if (full.lock == NULL) full.lock = nodedb__posix_lock;
    return full;
}

/* All of `bytes`, or -errno; a write that makes no progress is -EIO, the end of the file within a read is -ENODATA. */
static inline int nodedb__write_all(const nodedb_io *io, int fd, const void *buffer, size_t bytes, uint64_t offset) {
    const char *p = (const char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pwrite(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -EIO;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}
static inline int nodedb__read_all(const nodedb_io *io, int fd, void *buffer, size_t bytes, uint64_t offset) {
    char *p = (char *)buffer;
    while (bytes > 0) {
        int64_t n = io->pread(io->ctx, fd, p, bytes, offset);
        if (n == -EINTR) continue;
        if (n <= 0) return n < 0 ? (int)n : -ENODATA;
        p += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return 0;
}

/* The end of a long path: so much of it as leaves room in a nodedb_error for what happened, and at which offset. */
static inline const char *nodedb__path_end(const char *path) {
    size_t bytes = strlen(path);
    return bytes > NODEDB_ERROR_MESSAGE_BYTES / 2 ? path + bytes - NODEDB_ERROR_MESSAGE_BYTES / 2 : path;
}

#endif
/* END NODEDB STORAGE BLOCK ======================================================================================== */
/* ===================================================================================================================
 * DECLARATIONS
 * ================================================================================================================ */
#ifndef NODEDB_VAMANA_H
#define NODEDB_VAMANA_H

#if defined(NODEDB_VAMANA_STATIC) && !defined(NODEDB_VAMANA_IMPLEMENTATION)
#error "NODEDB_VAMANA_STATIC needs NODEDB_VAMANA_IMPLEMENTATION in the same file"
#endif
#if !defined(NODEDB_VAMANA_API) && defined(NODEDB_VAMANA_STATIC)
#define NODEDB_VAMANA_API static __attribute__((unused))
#elif !defined(NODEDB_VAMANA_API)
#define NODEDB_VAMANA_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define NODEDB_VAMANA_MAX_DIM 65535u              /* components of a vector */
#define NODEDB_VAMANA_MAX_VECTORS 4294967294u     /* slots of one index: 32 bits, of which one value means none */
#define NODEDB_VAMANA_MAX_LENGTH 1e18f            /* Euclidean length of a vector: no sum of squares overflows */
#define NODEDB_VAMANA_MIN_DEGREE 4u               /* edges in a node's row */
#define NODEDB_VAMANA_MAX_DEGREE 1024u            /* edges in a node's row */
#define NODEDB_VAMANA_MAX_BEAM 1048576u           /* entries of a search's beam, so also results of one search */
#define NODEDB_VAMANA_MAX_BEAM_BUILD 4096u        /* entries of the beam that finds a new node's neighbours */
#define NODEDB_VAMANA_MAX_BATCH 4096u             /* slots in one prefetch_batch of a fetcher_disk */
#define NODEDB_VAMANA_MAX_THREADS 256u            /* threads of one build */
#define NODEDB_VAMANA_QUEUE_DEPTH 128u            /* reads that one fetcher_disk keeps under way at once */
#define NODEDB_VAMANA_BLOCK_BYTES 4096u           /* unit of checksums and of disk reads */
#define NODEDB_VAMANA_FORMAT_VERSION 4u           /* of the file */

/* What the components of a vector are, in the caller's memory and in the index. */
typedef enum nodedb_vamana_type {
    NODEDB_VAMANA_F32 = 0, /* float */
    NODEDB_VAMANA_U8,      /* uint8_t */
    NODEDB_VAMANA_I8       /* int8_t */
} nodedb_vamana_type;

/* What "near" means. Every distance that is returned is smaller for nearer vectors, and never a NaN.
 *   L2      squared Euclidean distance
 *   IP      the negative inner product, -<q, x>, so the nearest has the greatest inner product
 *   COSINE  1 - cos(q, x), from 0 to 2. The cosine with a vector of only zeros is defined as 0, so its distance is 1 */
typedef enum nodedb_vamana_metric { NODEDB_VAMANA_L2 = 0, NODEDB_VAMANA_IP, NODEDB_VAMANA_COSINE } nodedb_vamana_metric;

/* What a walk reads in place of the vectors; see CODES in section 3. */
typedef enum nodedb_vamana_code {
    NODEDB_VAMANA_CODE_AUTO = 0, /* 4 bits where they touch less memory and are good enough, else 8, else none */
    NODEDB_VAMANA_CODE_NONE,     /* always the vectors */
    NODEDB_VAMANA_CODE_8BIT,     /* 8 bits for each component, however good they are */
    NODEDB_VAMANA_CODE_4BIT      /* 4 bits for each component, however good they are */
} nodedb_vamana_code;

/* An index, in memory or on disk. One thread at a time changes it, and any number of others search and ask it
 * meanwhile: see section 5. It is made by create or open, and belongs to the caller until destroy. */
typedef struct nodedb_vamana nodedb_vamana;

/* What one thread needs to search one index: a beam, a visited table, buffers, and on disk its own reads. One thread at
 * a time uses it. It stays valid while the index changes, and must be destroyed before the index. */
typedef struct nodedb_vamana_searcher nodedb_vamana_searcher;

/* Where exact vectors come from; see the fetchers below. */
typedef struct nodedb_vamana_fetcher nodedb_vamana_fetcher;

/* ---- make -------------------------------------------------------------------------------------------------------- */

/* The properties of an index that is made. Zero is the default of each field but `dim`, which must be set. */
typedef struct nodedb_vamana_config {
    uint32_t dim;                 /* components of every vector, 1 .. NODEDB_VAMANA_MAX_DIM */
    nodedb_vamana_type type;      /* 0: NODEDB_VAMANA_F32 */
    nodedb_vamana_metric metric;  /* 0: NODEDB_VAMANA_L2 */
    uint32_t degree;              /* R, edges in a row at most. 0: 64 */
    uint32_t beam_build;          /* beam that finds a new node's neighbours, .. MAX_BEAM_BUILD. 0: 128, and adaptive */
    float alpha;                  /* how much longer a detour may be before an edge is kept, 1 .. 2. 0: 1.2 */
    uint32_t passes;              /* of a build over its vectors, 1 or 2. 0: 1 */
    nodedb_vamana_code code;      /* 0: NODEDB_VAMANA_CODE_AUTO */
    uint64_t capacity;            /* vectors to make room for at once. 0: 1; the index grows when it is full */
    uint64_t seed;                /* orders a build, and breaks ties of equal distances. 0 is a seed like any other */
    const char *kernel;           /* name of the distance kernels to use, copied. NULL: the best that this CPU has */
    bool no_huge_pages;           /* do not ask for huge pages (madvise) for the large arrays */
    nodedb_allocator allocator;   /* called by the threads that call the index and its searchers */
    nodedb_logger logger;         /* an index in memory does not use it */
    nodedb_io io;                 /* used by save */
} nodedb_vamana_config;

/* Makes an empty index in memory. The config is copied; `io` and what the callbacks' ctx point to must outlive the
 * index. Returns NULL on failure: NODEDB_ERR_INVALID (a field is out of its range), NODEDB_ERR_UNSUPPORTED (this CPU or
 * build lacks the kernel that was named), NODEDB_ERR_LIMIT (capacity), NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_create(const nodedb_vamana_config *config, nodedb_error *err);

/* Frees the index, gives up a save that is under way, and closes its file. NULL is allowed. Destroy every searcher and
 * fetcher of the index first; no other call on it may be running. */
NODEDB_VAMANA_API void nodedb_vamana_destroy(nodedb_vamana *index);

/* Makes room for `capacity` vectors in all, so that inserts up to there do not grow the arrays. Less than there is room
 * for already: nothing happens. By the writer. NODEDB_ERR_NO_MEMORY, NODEDB_ERR_LIMIT, NODEDB_ERR_INVALID (NULL),
 * NODEDB_ERR_STATE (on disk). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_reserve(nodedb_vamana *index, uint64_t capacity, nodedb_error *err);

/* Gives memory back: finishes the sweep, moves the vectors together, and shrinks the arrays to their number. It takes
 * time in proportion to the index, and for that time memory for a second copy. Cursors of nodedb_vamana_next must start
 * again. By the writer. NODEDB_ERR_NO_MEMORY (only the sweep is done), NODEDB_ERR_INVALID (NULL), NODEDB_ERR_STATE (on
 * disk, or a save is under way). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_compact(nodedb_vamana *index, nodedb_error *err);

/* ---- change (the writer) ----------------------------------------------------------------------------------------- */

/* Inserts a vector, `dim` components of the index's type, which is copied. If the id is there already, its vector is
 * replaced. On failure nothing has changed: NODEDB_ERR_INVALID (NULL; a component is NaN or infinite, the message says
 * which; the vector is longer than NODEDB_VAMANA_MAX_LENGTH), NODEDB_ERR_NO_MEMORY, NODEDB_ERR_LIMIT (too many
 * vectors), NODEDB_ERR_STATE (on disk). Source: FreshDiskANN, section 4. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_insert(nodedb_vamana *index, uint64_t id, const void *vector,
                                                     nodedb_error *err);

/* Removes a vector: a search that begins after this does not return it. Its node leads searches on until a sweep has
 * repaired the graph around it, and this call does its share of that sweep; see REMOVAL in section 3.
 * NODEDB_ERR_NOT_FOUND (no such id), NODEDB_ERR_INVALID (NULL), NODEDB_ERR_STATE (on disk). Source: IP-DiskANN, section
 * 4, and section 11 g. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_remove(nodedb_vamana *index, uint64_t id, nodedb_error *err);

/* Advances what is due, by at most `budget` nodes: repairs the graph around removed vectors and frees their slots,
 * starting a sweep if none is under way, and makes codes that are due. A node costs at most 5 R^2 distances; most have
 * no edge to a removed node and cost none. Returns true while there is more to do, which includes waiting for searches
 * that may still know a removed slot. Calling it is optional: insert and remove do enough. It is for idle time. */
NODEDB_VAMANA_API bool nodedb_vamana_maintain(nodedb_vamana *index, uint64_t budget);

/* Called by a build after each batch, on the thread that called it. `done` of `total` vectors are in the index (with
 * two passes: `total` is twice their number). Return false to cancel. */
typedef bool (*nodedb_vamana_progress)(void *ctx, uint64_t done, uint64_t total);

/* Inserts `n` vectors with `threads` threads (0: 1), into an empty index or one that holds some. `vectors` are n rows
 * of `dim` components, one after the other, which are copied. `ids` are n different ids that the index does not hold;
 * NULL: 0 .. n - 1. One seed and input give the same graph, whatever `threads` is. `progress` may be NULL.
 * Nothing has changed after NODEDB_ERR_INVALID (as in insert, and the row is named too; too many threads),
 * NODEDB_ERR_EXISTS (an id that is there, or comes twice), NODEDB_ERR_LIMIT, NODEDB_ERR_NO_MEMORY, NODEDB_ERR_STATE (on
 * disk, or a save is under way). After NODEDB_ERR_CANCELLED the index is valid and holds the vectors that `done`
 * counted last. Source: ParlayANN, section 3, prefix doubling. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_build(nodedb_vamana *index, const uint64_t *ids, const void *vectors,
                                                    uint64_t n, uint32_t threads, nodedb_vamana_progress progress,
                                                    void *progress_ctx, nodedb_error *err);

/* The most bytes that an index made with this config, and a build of its first `n` vectors with so many threads, take
 * from the allocator at any time; the caller's `vectors` are not counted. Any thread. Returns 0 on failure:
 * NODEDB_ERR_INVALID and NODEDB_ERR_UNSUPPORTED (the config), NODEDB_ERR_LIMIT (n), NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API uint64_t nodedb_vamana_build_bytes(const nodedb_vamana_config *config, uint64_t n, uint32_t threads,
                                                     nodedb_error *err);

/* ---- search (any thread, each with its own searcher) ------------------------------------------------------------- */

/* The size and the source of a searcher. Zero is the default of each field. */
typedef struct nodedb_vamana_searcher_config {
    uint32_t beam_max;                     /* largest k and beam to prepare for; a larger one allocates once. 0: 128,
                                              and in memory no more than the index has vectors */
    const nodedb_vamana_fetcher *fetcher;  /* for an index on disk that is not packed: the struct is copied, its ctx is
                                              borrowed. NULL: a fetcher_disk of the searcher's own */
} nodedb_vamana_searcher_config;

/* Makes a searcher. config NULL: all defaults. Any thread. Returns NULL on failure: NODEDB_ERR_INVALID (index is NULL;
 * the fetcher lacks functions or has another dim), NODEDB_ERR_LIMIT (beam_max), NODEDB_ERR_NO_MEMORY,
 * NODEDB_ERR_UNSUPPORTED (a fetcher of the caller's for a packed index). */
NODEDB_VAMANA_API nodedb_vamana_searcher *nodedb_vamana_searcher_create(const nodedb_vamana *index,
                                                                        const nodedb_vamana_searcher_config *config,
                                                                        nodedb_error *err);

/* Frees a searcher, before its index is destroyed. Any thread. NULL is allowed. */
NODEDB_VAMANA_API void nodedb_vamana_searcher_destroy(nodedb_vamana_searcher *searcher);

/* Bytes that the searcher holds from the index's allocator; its fetcher is not counted. NULL: 0. */
NODEDB_VAMANA_API uint64_t nodedb_vamana_searcher_memory_bytes(const nodedb_vamana_searcher *searcher);

/* One query. Zero is the default of each field but `vector`. Everything is borrowed for the time of the call. */
typedef struct nodedb_vamana_query {
    const void *vector;    /* `dim` components of the index's type */
    bool by_id;            /* find the neighbours of vector `id` of this index, and ignore `vector`. That vector is
                              one of its own neighbours: want one more, or filter it out */
    uint64_t id;
    uint32_t k;            /* results wanted, .. NODEDB_VAMANA_MAX_BEAM. 0: 10 */
    uint32_t beam;         /* width of the walk, .. NODEDB_VAMANA_MAX_BEAM: a wider one is slower and finds more. Raised
                              to k, and with codes to k and their slack, if it is less. 0: 64 */
    uint32_t rerank;       /* with codes: how many of the beam get their exact distance, k .. beam; less counts as k,
                              more as the beam. 0: as many as the codes' error asks for, see RERANK in section 3.
                              Packed: all that are read get it */
    bool (*filter)(void *ctx, uint64_t id); /* true: this id may be returned. NULL: all may. On the calling thread */
    void *filter_ctx;
    const uint8_t *bitmap; /* bit id % 8 of byte id / 8 is set: this id may be returned. NULL: all may */
    uint64_t bitmap_bits;  /* ids from here on may not be returned */
    bool exact_walk;       /* in memory: walk on the vectors even if there are codes */
} nodedb_vamana_query;

/* One answer. */
typedef struct nodedb_vamana_result {
    uint64_t id;
    float distance; /* exact; see nodedb_vamana_metric */
} nodedb_vamana_result;

/* What a query cost. It is written only if the call succeeds; search_many always writes the sums. */
typedef struct nodedb_vamana_stats {
    uint64_t hops;      /* nodes that were expanded: whose neighbours were looked at */
    uint64_t distances; /* computed, between codes or vectors */
    uint64_t exact;     /* those of them between vectors */
    uint64_t reads;     /* from the disk, the repeated ones included */
    uint64_t retries;   /* reads that were repeated */
    uint64_t damaged;   /* on disk: nodes, codes, ids or vectors that were passed over, as they are damaged */
    bool scanned;       /* every vector was looked at: the beam is as wide as the index, the filter leaves too few, or
                           a walk found fewer than k, as the nodes that it met are removed or damaged */
} nodedb_vamana_stats;

/* Finds up to k results, the nearest first, ties by id. `results` has room for k (10 if query->k is 0). *found says how
 * many there are: fewer than k only if the index or the filter has no more. `stats` may be NULL. Section 6 tells when
 * it allocates. On failure *found is 0: NODEDB_ERR_INVALID (NULL; a component that is NaN or infinite; a vector that is
 * too long), NODEDB_ERR_LIMIT (k or beam), NODEDB_ERR_NOT_FOUND (no such query->id), NODEDB_ERR_NO_MEMORY; on disk also
 * NODEDB_ERR_IO, and NODEDB_ERR_CORRUPT if the vector of query->id is damaged. What else is damaged in the file is
 * passed over, counted in stats->damaged, and logged once: a worse answer is never silent. Source: DiskANN, algorithm
 * 1. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_search(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                     nodedb_vamana_result *results, uint32_t *found,
                                                     nodedb_vamana_stats *stats, nodedb_error *err);

/* The truth: as search, by measuring every vector (on disk: reading every vector). `beam` and `rerank` are not used. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_scan(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                   nodedb_vamana_result *results, uint32_t *found,
                                                   nodedb_vamana_stats *stats, nodedb_error *err);

/* Answers `n` queries that differ only in their vectors. `vectors` are n rows of `dim` components (common->vector is
 * not used, common->by_id is refused), `results` has room for n times k, `found` for n counts; `stats` gets the sums.
 * Each query sees the index as it is when its turn comes. On disk the device reads for some queries while others walk,
 * which keeps it busy; in a resident file, a query that is still uncertain after its reads is answered again, alone, at
 * the end. Errors are those of search, for the first query that fails, which the message names; the queries before it
 * are answered, and *found of all others is 0. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_search_many(nodedb_vamana_searcher *searcher,
                                                          const nodedb_vamana_query *common, const void *vectors,
                                                          uint64_t n, nodedb_vamana_result *results, uint32_t *found,
                                                          nodedb_vamana_stats *stats, nodedb_error *err);

/* Finds all vectors within `radius` (a distance as it is returned; the radius itself is within), but at most the
 * nearest `most`, for which `results` has room. It is approximate, like search: query->beam is the narrowest beam, and
 * query->k is not used. Errors are those of search, and NODEDB_ERR_INVALID (radius is NaN, or most is 0),
 * NODEDB_ERR_LIMIT (most is over NODEDB_VAMANA_MAX_BEAM). */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_search_range(nodedb_vamana_searcher *searcher,
                                                           const nodedb_vamana_query *query, float radius,
                                                           nodedb_vamana_result *results, uint32_t most,
                                                           uint32_t *found, nodedb_vamana_stats *stats,
                                                           nodedb_error *err);

/* ---- ask (any thread, also while one writes) --------------------------------------------------------------------- */

/* True if a search can return this id. On disk also false if what would say so is damaged or cannot be read; `get`
 * tells these apart. */
NODEDB_VAMANA_API bool nodedb_vamana_contains(const nodedb_vamana *index, uint64_t id);

/* Writes the vector of `id` to `out`, as `dim` floats whatever the type: bit for bit what was inserted, but for COSINE
 * over F32 up to the rounding of a division and a multiplication. NODEDB_ERR_NOT_FOUND (no such id), NODEDB_ERR_INVALID
 * (NULL); on disk also NODEDB_ERR_IO, NODEDB_ERR_CORRUPT (what the file has of the id is damaged),
 * NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_get(const nodedb_vamana *index, uint64_t id, float *out,
                                                  nodedb_error *err);

/* Writes the vector of `id` to `out` as it is stored: `dim` components of the index's type, so that it can be inserted
 * or asked for again without a conversion. Under COSINE over F32 it is of length 1. Errors as in get. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_get_stored(const nodedb_vamana *index, uint64_t id, void *out,
                                                         nodedb_error *err);

/* Visits all ids, in no order: set *cursor to 0, and call until it returns false. An id that stays in the index for the
 * whole walk is returned exactly once, even if others are inserted and removed between the calls. One that is replaced
 * meanwhile changes its place, so it may be returned twice or not at all. After compact, start again. On disk it passes
 * over ids that are damaged, and ends where it cannot read; the next call then tries again. */
NODEDB_VAMANA_API bool nodedb_vamana_next(const nodedb_vamana *index, uint64_t *cursor, uint64_t *id);

/* These five never fail. An index that is NULL counts as empty: 0, L2, F32, "". */
NODEDB_VAMANA_API uint64_t nodedb_vamana_count(const nodedb_vamana *index); /* vectors that a search can return */
NODEDB_VAMANA_API uint32_t nodedb_vamana_dim(const nodedb_vamana *index);
NODEDB_VAMANA_API nodedb_vamana_type nodedb_vamana_type_of(const nodedb_vamana *index);
NODEDB_VAMANA_API nodedb_vamana_metric nodedb_vamana_metric_of(const nodedb_vamana *index);
NODEDB_VAMANA_API const char *nodedb_vamana_kernel(const nodedb_vamana *index); /* name of its kernels, static */

/* Bytes that the index holds from its allocator, on disk including what is not loaded yet. Searchers, fetchers, and a
 * save that is under way are not counted. */
NODEDB_VAMANA_API uint64_t nodedb_vamana_memory_bytes(const nodedb_vamana *index);

/* The state of an index, for people and tests. A slot has room for one vector. */
typedef struct nodedb_vamana_info {
    uint64_t live;           /* slots of vectors that a search can return */
    uint64_t removed;        /* slots of removed vectors, around which the graph is not repaired yet */
    uint64_t free;           /* slots that were used and can be reused */
    uint64_t capacity;       /* slots that there is room for */
    uint32_t code_bits;      /* of the codes that searches walk on, for each component; 0: none */
    uint64_t code_bytes;     /* of one code */
    uint32_t beam_build;     /* beam that finds a new node's neighbours now */
    double mean_degree;      /* edges per live node. 0 if they are packed on disk */
    uint64_t entry_id;       /* id of the entry, the root of the tree of parents; 0 if there is none */
    uint64_t damaged_blocks; /* on disk: blocks of the file that have been found damaged so far */
    uint64_t unreachable;    /* live vectors to which no edges lead from the entry: 0, or the index has a fault. Not
                                exact while a writer is at work or rows are damaged; 0 if the rows are packed on disk;
                                UINT64_MAX if there is no memory to count (4 bytes a slot) */
} nodedb_vamana_info;

/* Fills *info. It visits every node and every edge. A NULL index: all zeros. */
NODEDB_VAMANA_API void nodedb_vamana_inspect(const nodedb_vamana *index, nodedb_vamana_info *info);

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* How a file is laid out for those who search it on disk. Both can be opened into memory too. */
typedef enum nodedb_vamana_layout {
    NODEDB_VAMANA_RESIDENT = 0, /* rows by themselves, to be kept in memory; a read brings exact vectors */
    NODEDB_VAMANA_PACKED        /* each row with its vector, for graphs that do not fit either; a read brings both */
} nodedb_vamana_layout;

/* Writes the index to `path`, so that a crash leaves the old file or the new one: into `path`.tmp, synced, renamed over
 * `path`, the directory synced. By the writer; searches may go on. The index must be in memory. After an error the old
 * file stands, except that a failure to sync the directory leaves the new one: NODEDB_ERR_INVALID (NULL, no path, no
 * such layout), NODEDB_ERR_STATE (opened on disk, or a save is under way), NODEDB_ERR_IO, NODEDB_ERR_DISK_FULL,
 * NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_save(nodedb_vamana *index, const char *path, nodedb_vamana_layout layout,
                                                   nodedb_error *err);

/* The same in slices, by the writer: begin, then step until *more is false or the step fails, which ends the save.
 *   Meanwhile the index may change (not by build or compact: NODEDB_ERR_STATE). The file holds it as it was at the
 * beginning, so a log of the changes since then, applied to the file once opened, gives the same index; the same to the
 * bit, if no other thread has searched meanwhile and the calls of maintain are repeated too. What changes before it is
 * written is copied first, which takes memory; without memory the save fails, not the change.
 *   `budget` is in vectors, at least 1. A step also ends when it has waited for the disk: for a sync of 1 MiB, or for
 * the file system to take back 4 MiB of a file that was replaced (one that is open elsewhere is left as it is).
 *   Errors as in save; step without a save under way: NODEDB_ERR_STATE. `cancel` removes what was written at once; once
 * the file has its name, it stays. With no save under way, or NULL, cancel does nothing. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_save_begin(nodedb_vamana *index, const char *path,
                                                         nodedb_vamana_layout layout, nodedb_error *err);
NODEDB_VAMANA_API nodedb_status nodedb_vamana_save_step(nodedb_vamana *index, uint64_t budget, bool *more,
                                                        nodedb_error *err);
NODEDB_VAMANA_API void nodedb_vamana_save_cancel(nodedb_vamana *index);

/* Where an opened index lives. */
typedef enum nodedb_vamana_mode {
    NODEDB_VAMANA_IN_MEMORY = 0, /* everything is read and checked; the index can change, and no longer uses the file */
    NODEDB_VAMANA_ON_DISK        /* read-only; exact vectors stay in the file, the rest is read when it is needed */
} nodedb_vamana_mode;

/* How blocks are read on disk. */
typedef enum nodedb_vamana_fetch {
    NODEDB_VAMANA_FETCH_AUTO = 0, /* io_uring where the system allows it, else pread */
    NODEDB_VAMANA_FETCH_PREAD,    /* one by one */
    NODEDB_VAMANA_FETCH_MAPPED    /* mmap, through the page cache (Linux 5.14, little-endian), else pread */
} nodedb_vamana_fetch;

/* How a file is opened. Zero is the default of each field. What fixes the index (dim, type, metric, degree ...) is in
 * the file. */
typedef struct nodedb_vamana_open_config {
    nodedb_vamana_mode mode;    /* 0: NODEDB_VAMANA_IN_MEMORY */
    uint64_t capacity;          /* in memory: vectors to make room for. 0: as many as there are */
    nodedb_vamana_fetch fetch;  /* on disk. 0: NODEDB_VAMANA_FETCH_AUTO */
    bool no_direct;             /* on disk: read through the page cache */
    uint64_t cache_bytes;       /* packed, on disk: for nodes near the starts, filled by load. 0: 1/32 of the records */
    const char *kernel;         /* as in nodedb_vamana_config */
    bool no_huge_pages;         /* as in nodedb_vamana_config */
    nodedb_allocator allocator;
    nodedb_logger logger;       /* told what falls back, and what is damaged; on disk by any thread that searches */
    nodedb_io io;               /* on disk used by any thread that searches. With a `pread` of the caller's, nothing is
                                   mapped, and io_uring is not used */
} nodedb_vamana_open_config;

/* Opens what save wrote; nothing is built again. config NULL: all defaults. In memory everything is read and checked,
 * and any damage is an error. On disk only the header and the codes' means are read, so it takes milliseconds at most,
 * whatever the size of the file. Returns NULL on failure: NODEDB_ERR_NOT_FOUND (no such file), NODEDB_ERR_CORRUPT
 * (message and `offset` say where), NODEDB_ERR_UNSUPPORTED (another version of the format; a kernel), NODEDB_ERR_IO,
 * NODEDB_ERR_NO_MEMORY, NODEDB_ERR_LIMIT (capacity), NODEDB_ERR_INVALID. */
NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_open(const char *path, const nodedb_vamana_open_config *config,
                                                    nodedb_error *err);

#if !defined(NODEDB_VAMANA_NO_DISK)
/* Reads what an index on disk keeps in memory and has not read yet, and fills the cache of a packed one, so that no
 * search has to wait for it: about `budget` bytes (at least 1) in one call. *more: call again. By one thread at a time,
 * while others search. In memory there is nothing to do. NODEDB_ERR_INVALID (NULL, budget 0), NODEDB_ERR_IO,
 * NODEDB_ERR_NO_MEMORY; after an error it may be called again. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_load(nodedb_vamana *index, uint64_t budget, bool *more,
                                                   nodedb_error *err);
#endif

/* Called by verify for each damaged block: its offset in the file, and the name of the section that it is in. */
typedef void (*nodedb_vamana_on_damage)(void *ctx, uint64_t offset, const char *section);

/* Reads the whole file and checks every block against its checksum; each damaged one is reported (`report` may be
 * NULL). If none is, it checks all that opening into memory checks, and the table of ids. It needs the memory of an
 * index on disk. (With NODEDB_VAMANA_NO_DISK it opens the file into memory instead, and does not read the table of
 * ids.) config NULL: all defaults; its mode, fetch, no_direct and logger are not used. Any thread; not while the file
 * is replaced. NODEDB_ERR_CORRUPT (the first damage), else errors as in open. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_verify(const char *path, const nodedb_vamana_open_config *config,
                                                     nodedb_vamana_on_damage report, void *ctx, nodedb_error *err);

/* ---- fetchers: exact vectors from elsewhere ---------------------------------------------------------------------- */

/* Where the rerank gets the exact vectors of an index on disk: those in its file, or, by a struct of the caller's own,
 * some that are kept elsewhere. It knows them by slot: if the index has only grown, the i-th vector inserted has slot
 * i, from 0. One thread at a time uses a fetcher; its maker calls destroy. Between the calls, a slot that was announced
 * stays announced until batch_max more have been. */
struct nodedb_vamana_fetcher {
    void *ctx;
    uint32_t dim;       /* components of a vector */
    uint32_t batch_max; /* slots in one prefetch_batch, at least 1 */
    /* Announces `n` more slots, n <= batch_max; some may repeat. NODEDB_ERR_INVALID (a slot is out of range),
     * NODEDB_ERR_LIMIT (n). */
    nodedb_status (*prefetch_batch)(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err);
    /* Waits for an announced slot, and returns `dim` components as stored (COSINE over F32: of length 1), in this
     * machine's byte order, valid until batch_max more slots have been announced; or NULL and the reason. A vector that
     * is damaged is NODEDB_ERR_CORRUPT: searches pass it over and count it. Any other failure fails the search.
     * NODEDB_ERR_INVALID (a slot out of range), NODEDB_ERR_STATE (one that is not announced, or not any more; a fetcher
     * may serve it nevertheless, as that over a mapping does). */
    const void *(*fetch)(void *ctx, uint32_t slot, nodedb_error *err);
    /* Reads and repeated reads so far. NULL: it does not count. */
    void (*counters)(void *ctx, uint64_t *reads, uint64_t *retries);
    void (*destroy)(void *ctx); /* NULL: nothing to free */
};

#if !defined(NODEDB_VAMANA_NO_DISK)
/* Over the file of an index opened on disk, read in the way that the index was opened for: io_uring with registered
 * buffers, pread, or mapped. `batch_max` 0: 128. It allocates only here. A read that fails or does not match its
 * checksum is repeated once (mapped: what does not match is not), then fetch reports NODEDB_ERR_IO or
 * NODEDB_ERR_CORRUPT. In a packed file each vector is followed by its row. NODEDB_ERR_INVALID (NULL; batch_max is over
 * NODEDB_VAMANA_MAX_BATCH), NODEDB_ERR_STATE (in memory), NODEDB_ERR_NO_MEMORY. */
NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_disk(const nodedb_vamana *index, uint32_t batch_max,
                                                           nodedb_vamana_fetcher *fetcher, nodedb_error *err);
#endif

/* ---- kernels: the distance functions ----------------------------------------------------------------------------- */

/* One set of distance functions over n components, 1 .. 65,536. Pointers need the alignment of their type only. l2 is
 * the squared distance, dot the inner product. Sums of integers are exact, and then rounded to float. Sums of floats
 * are off by at most (n / 4 + 8) / 2^24 of the sum of their terms' magnitudes, whatever the order of the additions.
 *   4-bit codes: n is a multiple of 64, and a code has n / 2 bytes, in groups of 32 for 64 components: byte b of group
 * k has component 64 k + b in its low half and 64 k + 32 + b in its high one. The query q has n components in plain
 * order. l2_code4 is the sum of c (4 c - q): the part of (2 c - q / 4) squared that depends on the code c. */
typedef struct nodedb_vamana_kernels {
    const char *name; /* "plain", "sse2", "avx2", "avx512", "avx512vnni", "neon", "neondot" */
    float (*l2_f32)(const float *a, const float *b, size_t n);
    float (*dot_f32)(const float *a, const float *b, size_t n);
    float (*l2_u8)(const uint8_t *a, const uint8_t *b, size_t n);
    float (*dot_u8)(const uint8_t *a, const uint8_t *b, size_t n);
    float (*l2_i8)(const int8_t *a, const int8_t *b, size_t n);
    float (*dot_i8)(const int8_t *a, const int8_t *b, size_t n);
    float (*dot_i8_u8)(const int8_t *q, const uint8_t *c, size_t n); /* a query against an 8-bit code */
    float (*l2_code4)(const int8_t *q, const uint8_t *code, size_t n);
    float (*dot_code4)(const int8_t *q, const uint8_t *code, size_t n);
    float (*dot_f32_u8)(const float *a, const uint8_t *b, size_t n); /* a query against an 8-bit code */
} nodedb_vamana_kernels;

/* The kernel sets of this build, the plainest first: 0, 1, ... until NULL. They are static. Any thread. */
NODEDB_VAMANA_API const nodedb_vamana_kernels *nodedb_vamana_kernels_at(size_t i);

/* True if this CPU can run them. Any thread. */
NODEDB_VAMANA_API bool nodedb_vamana_kernels_usable(const nodedb_vamana_kernels *kernels);

#ifdef __cplusplus
}
#endif
#endif /* NODEDB_VAMANA_H */

/* ===================================================================================================================
 * IMPLEMENTATION
 *
 *   THE STRUCTURE   the index and its arrays
 *   DISTANCES       how a distance is measured
 *   THE WALK        the greedy search that everything uses
 *   NEIGHBOURS      which edges a node gets
 *   CHANGES         insert, remove, and the sweep
 *   SEARCH          from a query to results
 *   BUILD           many vectors at once
 *   MEMORY          creating, growing, compacting, asking
 *   CODES           short codes to walk on
 *   FILES           format, saving, opening, verifying
 *   DISK            searching an index in its file
 *   KERNELS         distances for each CPU
 * ================================================================================================================ */
#if defined(NODEDB_VAMANA_IMPLEMENTATION) && !defined(NODEDB_VAMANA_IMPLEMENTED)
#define NODEDB_VAMANA_IMPLEMENTED 1

#include <assert.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#if defined(NODEDB_VAMANA_NO_SIMD)
#elif defined(__x86_64__) && defined(__GNUC__)
#define NODEDB_VAMANA__X86 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__AARCH64EL__)
#define NODEDB_VAMANA__NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif
#if !defined(NODEDB_NO_LIBURING) && !defined(NODEDB_VAMANA_NO_DISK) && defined(__has_include)
#if __has_include(<liburing.h>)
#define NODEDB_VAMANA__URING 1
#include <liburing.h>
#endif
#endif

/* ===================================================================================================================
 * THE STRUCTURE: the index and its arrays
 *
 * An index is a graph. Every vector has a slot: a number below `slots`. The arrays have one entry for each slot:
 *
 *   slot       0        1        2        3
 *   states     LIVE     LIVE     FREE     REMOVED
 *   vectors    x0       x1       -        x3            what distances are measured to
 *   rows       1 3 .    0 3 .    next .   0 1 .         the neighbours: slots, padded with NONE
 *   ids        17       4        -        9             what the caller calls them
 *
 * A search starts at `entry` and at the nearest of the `starts`, and goes from row to row. Everything else serves to
 * choose good rows.
 * ================================================================================================================ */

/* ---- small helpers ----------------------------------------------------------------------------------------------- */

#define NODEDB_VAMANA__INLINE static inline __attribute__((always_inline))
#define NODEDB_VAMANA__AHEAD 16       /* vectors that are prefetched before they are needed */
#define NODEDB_VAMANA__AHEAD_LINES 8  /* cache lines of each; the hardware fetches the rest of a long vector */
#define NODEDB_VAMANA__CODE4_BLOCK 64 /* components in a block of a 4-bit code: 32 bytes */

NODEDB_VAMANA__INLINE void nodedb_vamana__prefetch(const uint8_t *at, size_t bytes) {
    size_t line, lines = (bytes + NODEDB_CACHE_LINE_BYTES - 1) / NODEDB_CACHE_LINE_BYTES;
    if (lines > NODEDB_VAMANA__AHEAD_LINES) lines = NODEDB_VAMANA__AHEAD_LINES;
    for (line = 0; line < lines; line++) __builtin_prefetch(at + line * NODEDB_CACHE_LINE_BYTES);
    __asm__ __volatile__("" : : "r"(at)); /* or gcc takes the function for one without effect and drops the calls */
}

static inline size_t nodedb_vamana__min(size_t a, size_t b) { return a < b ? a : b; }

/* ---- constants, and what a coder knows --------------------------------------------------------------------------- */

#define NODEDB_VAMANA__NONE UINT32_MAX              /* no slot */
#define NODEDB_VAMANA__FIRST_CAPACITY 1u            /* slots */
#define NODEDB_VAMANA__GROWTH_LEAST 64u             /* slots by which a larger index grows; a smaller one doubles */
#define NODEDB_VAMANA__HUGE_BYTES ((size_t)2 << 20) /* of a huge page of x86-64 and, by default, aarch64 */
#define NODEDB_VAMANA__STARTS_MAX 64u               /* places where a walk may begin, beside the entry */
#define NODEDB_VAMANA__START_SHARE 1024u            /* one start for so many slots */
#define NODEDB_VAMANA__STEPS 10u                    /* steps of codes that training tries; it takes the best */
#define NODEDB_VAMANA__SLACK_MAX 127u               /* places by which codes displace a vector: this many, or more */
#define NODEDB_VAMANA__SLACK_LEAST 8u               /* entries beyond k that are measured exactly at least */
#define NODEDB_VAMANA__LEVELS_MAX 5u                /* see levels, in NEIGHBOURS */
#define NODEDB_VAMANA__CODE_FIRST 4096u             /* vectors; fewer have no codes, as all fits the caches anyway */
#define NODEDB_VAMANA__CODE_PER_CHANGE 32u          /* codes that each insert makes while all are remade */
#define NODEDB_VAMANA__JUDGE_NEAREST 10u            /* nearest of a node by which beams and codes are judged */
#define NODEDB_VAMANA__STRIPES 8u                   /* counters of readers, each on a cache line of its own */

/* What a slot holds. Removed slots have one of two colours, which take turns: REMOVED and REMOVED + 1. One is the
 * colour of the slots that the sweep under way will free. The other is that of slots removed since the sweep began;
 * they wait for the next sweep. */
enum { NODEDB_VAMANA__FREE = 0, NODEDB_VAMANA__LIVE = 1, NODEDB_VAMANA__REMOVED = 2 };

/* The phases of a sweep, in order. IDLE -> REPAIRING: a remove finds that enough slots are removed. REPAIRING ->
 * WAITING: every row has been repaired. WAITING -> FREEING: every reader that may hold a removed slot has left. FREEING
 * -> IDLE: all slots have been visited. Stored in files. */
typedef enum nodedb_vamana__sweep {
    NODEDB_VAMANA__IDLE = 0,
    NODEDB_VAMANA__REPAIRING,
    NODEDB_VAMANA__WAITING,
    NODEDB_VAMANA__FREEING
} nodedb_vamana__sweep;

/* How vectors become codes; see CODES. Owned by the arrays whose codes it made, or by the index while it makes them.
 * Nothing but `slack` changes once the first code is made. */
typedef struct nodedb_vamana__coder {
    uint32_t bits;        /* 4 or 8 for each component */
    float step;           /* between two values of a component; 0 until training has chosen it */
    float *mean;          /* `dim` components, subtracted before the rotation; behind this struct */
    size_t components;    /* of a padded code: what the kernels are told */
    size_t stride;        /* bytes from one code to the next */
    uint32_t slack;       /* places by which codes displace the nearest: see nodedb_vamana__slack. Atomic */
} nodedb_vamana__coder;

/* What a coder has learned from a sample of the vectors. First it learns their mean and how far they are from it, then,
 * from fewer of them, the step. The writer's; meaningful until the coder has a step. */
typedef struct nodedb_vamana__training {
    uint32_t slots;                      /* over which the sample is spread: all in use when the training began */
    uint32_t at;                         /* how many of the sample are done, for the mean and then for the step */
    uint32_t sampled;                    /* of those for the mean, how many were vectors */
    double squares;                      /* sum of their squared distances from their mean */
    double errors[NODEDB_VAMANA__STEPS]; /* sums of the squared errors of codes with each step that is tried */
} nodedb_vamana__training;

/* What is known of a row. The first `far` edges lead to nodes of this node's levels (see levels); readers use them. Of
 * the edges behind them, the first `strict` passed the strict rule among themselves when a pruning made the row, and
 * the first `pruned` passed the relaxed one. 255 stands for 255 or more.
 *
 *   row    far edges | strict | relaxed | children that a rule occludes, edges added since | NONE ...
 *                    |<---- pruned ---->| */
typedef struct nodedb_vamana__head {
    uint8_t strict, pruned, far, level;
} nodedb_vamana__head;

/* ---- arrays, readers, index -------------------------------------------------------------------------------------- */

/* Everything that has one entry for each slot. A reader takes the pointer once and works on these arrays until it
 * leaves. When they grow, or the codes are remade, the writer publishes another struct and frees the old one after the
 * last reader that may use it.
 *   What changes in place is read and written atomically: rows, states, the table, `slots`, `entry`, `starts`. A
 * vector, its code, norm and id are written before its state becomes LIVE and before any row holds the slot. They are
 * not written again until no reader can have the slot. */
typedef struct nodedb_vamana__arrays {
    uint32_t capacity;            /* slots that there is room for */
    uint32_t slots;               /* slots that were ever used: the arrays are meaningful below this */
    uint32_t entry;               /* the root of the tree of parents, where walks begin, or NONE */
    uint32_t table_version;       /* odd while entries of the table move */
    uint32_t starts[NODEDB_VAMANA__STARTS_MAX]; /* where walks may begin too, then NONE; see begin_walk */
    uint8_t *vectors;             /* on disk NULL: they stay in the file; so do `parents` */
    uint64_t *ids;
    uint32_t *rows;               /* neighbours, then NONE up to the end of the row */
    nodedb_vamana__head *heads;   /* what is known of each row. The writer's, but for `far` */
    uint32_t *parents;            /* in the tree, see NEIGHBOURS. The writer's */
    float *norms;                 /* see norms in section 9 of the manual; NULL for L2 */
    uint8_t *states;
    uint32_t *table;              /* live slots by id: open addressing, linear probing, at most two thirds full */
    size_t table_size;            /* a power of two */
    uint8_t *codes;               /* NULL: none */
    bool zeros;                   /* COSINE: there are or were vectors of zeros, which codes cannot show. Atomic */
    nodedb_vamana__coder *coder;  /* of `codes`; NULL: none */
} nodedb_vamana__arrays;

/* Counters of readers. A reader counts itself in under the parity of the epoch. The writer advances the epoch and waits
 * until the counts of the other parity are zero: then every reader began after the epoch advanced. Any thread writes
 * its own counter, the writer alone writes the epoch; all with atomics. */
typedef struct nodedb_vamana__pins {
    uint32_t count[2];            /* readers under way, by parity of the epoch */
    uint8_t pad[NODEDB_CACHE_LINE_BYTES - 8];
} nodedb_vamana__pins;

typedef struct nodedb_vamana__readers {
    uint32_t epoch;
    uint32_t next_stripe;         /* that the next searcher gets */
    uint8_t pad[NODEDB_CACHE_LINE_BYTES - 8];
    nodedb_vamana__pins pins[NODEDB_VAMANA__STRIPES];
} nodedb_vamana__readers;

/* Distances from a query to `count` vectors: those in `slots`, `stride` bytes apart, of n components each. */
typedef void nodedb_vamana__many(const void *query, const uint8_t *base, size_t stride, const uint32_t *slots,
                                 size_t count, size_t n, float *out);

/* Turns n components, a power of two, in place: flips the signs that `key` chooses, then takes the Walsh-Hadamard
 * transform, scaled so that lengths stay. Every set gives the same to the last bit. See CODES. */
typedef void nodedb_vamana__turning(float *x, uint32_t n, uint64_t key);

/* The functions for one instruction set; constant. */
typedef struct nodedb_vamana__kernel_set {
    nodedb_vamana_kernels one;
    nodedb_vamana__many *l2_f32, *dot_f32, *l2_u8, *dot_u8, *l2_i8, *dot_i8, *dot_i8_u8, *l2_code4, *dot_code4,
        *dot_f32_u8;
    nodedb_vamana__turning *turn_part;
} nodedb_vamana__kernel_set;

/* The index. Everything up to `readers` is fixed after creation. The rest is changed by the writer alone. True between
 * calls:
 *   - the row of a slot that is not free holds no free slot. (A sweep that is FREEING may leave one in the row of a
 *     slot that it is about to free; no row leads to such a slot.)
 *   - `table` holds exactly the live slots, and `entry` is live if any slot is.
 *   - the row of a free slot starts with the next free slot. */
struct nodedb_vamana {
    uint32_t dim, degree, beam_build, passes;
    bool beam_adapts;             /* the beam that finds neighbours may be wider than beam_build: see BEAM_PROBED */
    nodedb_vamana_type type;
    nodedb_vamana_metric metric;
    nodedb_vamana_code code;      /* as asked for */
    float alpha;
    uint64_t seed;
    bool no_huge_pages;
    size_t vector_bytes;          /* of one exact vector, without padding */
    size_t stride;                /* bytes from one vector in memory to the next; the padding is zero */
    size_t components;            /* of a padded vector: what the kernels are told */
    size_t row_words;             /* from one row to the next: the degree, rounded up to whole cache lines */
    const nodedb_vamana__kernel_set *kernels;
    nodedb_vamana__many *many_l2, *many_dot; /* of `kernels`, for the type of the vectors */
    nodedb_allocator allocator;
    nodedb_logger logger;
    nodedb_io io;
    nodedb_vamana__readers *readers;

    uint64_t bytes;               /* taken from the allocator. Atomic, like `live`, `removed` and `arrays` */
    nodedb_vamana__arrays *arrays;
    uint32_t live, removed;       /* vectors, and slots that wait for a sweep */
    uint32_t first_free;          /* head of the chain of free slots, or NONE */
    uint64_t code_due;            /* number of vectors at which the codes are remade */
    uint32_t code_live;           /* number of vectors when they were made last; 0: never */
    uint32_t code_inserted;       /* vectors inserted since then, at most 2^32 - 1 */
    uint32_t code_clipped;        /* of them, those that the codes clip: see encode. Atomic in a build */
    uint32_t code_asked, code_missed; /* nearest of new nodes, and those that codes displaced by more than the slack */
    uint32_t beam_now;            /* entries of the beam that finds neighbours. Atomic */
    uint32_t beam_asked, beam_missed; /* nearest that a beam of twice as many found, and those that this one missed */
    uint8_t colour;               /* state that a slot gets when it is removed now */
    nodedb_vamana__sweep sweep;   /* the sweep's phase, and the slot that it visits next */
    uint32_t sweep_at;
    nodedb_vamana__coder *recoder;    /* of the codes that are being made; NULL: none */
    nodedb_vamana__training training; /* of `recoder`, until it has a step */
    uint8_t *recodes;             /* the codes that are being made */
    uint32_t recode_at;           /* slots below this have one */
    uint32_t judge_at;            /* nodes by which they have been judged: see judge */
    uint16_t displaced[NODEDB_VAMANA__SLACK_MAX + 1]; /* how many of the nearest were displaced by 0, 1, ... places */
    nodedb_vamana_searcher *writer; /* the writer's own scratch memory, and its bytes (atomic) */
    uint64_t writer_bytes;

    struct nodedb_vamana__save_state *save; /* the save under way; NULL: none */
    struct nodedb_vamana__file *file; /* on disk, read-only: what the arrays stand for is in it. NULL: in memory */
};

/* ---- access to a slot -------------------------------------------------------------------------------------------- */

/* True if the index was opened on disk: it is read-only, and its exact vectors stay in the file. */
static inline bool nodedb_vamana__is_on_disk(const nodedb_vamana *index) {
#if defined(NODEDB_VAMANA_NO_DISK)
    (void)index;
    return false;
#else
    return index->file != NULL;
#endif
}

NODEDB_VAMANA__INLINE uint8_t *nodedb_vamana__vector(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                                     uint32_t slot) {
    assert(slot < a->capacity);
    return a->vectors + (size_t)slot * index->stride;
}

NODEDB_VAMANA__INLINE uint32_t *nodedb_vamana__row(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                                   uint32_t slot) {
    assert(slot < a->capacity);
    return a->rows + (size_t)slot * index->row_words;
}

/* Number of neighbours in a row. For the writer, who alone changes rows. */
static uint32_t nodedb_vamana__row_count(const nodedb_vamana *index, const uint32_t *row) {
    uint32_t count = 0;
    while (count < index->degree && row[count] != NODEDB_VAMANA__NONE) count++;
    return count;
}

/* What the manual calls the norm of a slot's vector; 0 for L2, which has none. */
NODEDB_VAMANA__INLINE float nodedb_vamana__norm(const nodedb_vamana__arrays *a, uint32_t slot) {
    return a->norms == NULL ? 0 : a->norms[slot];
}

NODEDB_VAMANA__INLINE uint8_t nodedb_vamana__state(const nodedb_vamana__arrays *a, uint32_t slot) {
    return nodedb__load_acquire(&a->states[slot]);
}

static void nodedb_vamana__set_state(nodedb_vamana__arrays *a, uint32_t slot, uint8_t state) {
    nodedb__store_release(&a->states[slot], state);
}

static bool nodedb_vamana__is_finite(float x) { /* by its bits: holds under -ffast-math too */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7F800000u) != 0x7F800000u;
}

/* ---- forward declarations ---------------------------------------------------------------------------------------- */

struct nodedb_vamana__counts;
struct nodedb_vamana__code_error;
struct nodedb_vamana__near;
struct nodedb_vamana__plan;
struct nodedb_vamana__query_batch;
struct nodedb_vamana__save_state;
struct nodedb_vamana__target;
struct nodedb_vamana__read_errors;

/* Of CHANGES, MEMORY and CODES. */
static void nodedb_vamana__remove_slot(nodedb_vamana *index, uint32_t slot);
static nodedb_status nodedb_vamana__make_room(nodedb_vamana *index, uint64_t more, nodedb_error *err);
static void nodedb_vamana__drop_recoding(nodedb_vamana *index);
static struct nodedb_vamana__target nodedb_vamana__code_target(nodedb_vamana_searcher *s, const uint8_t *vector,
                                                               float norm);
static bool nodedb_vamana__encode_slot(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                       const nodedb_vamana__coder *c, uint8_t *codes, float *turned, uint32_t slot);
static void nodedb_vamana__encode_new(nodedb_vamana *index, float *turned, uint32_t slot);
static void nodedb_vamana__note_zeros(const nodedb_vamana *index, nodedb_vamana__arrays *a, float norm);
static bool nodedb_vamana__is_trained(const nodedb_vamana__coder *c);
static void nodedb_vamana__count_inserted(nodedb_vamana *index, uint32_t more);
static bool nodedb_vamana__make_codes(nodedb_vamana *index, uint64_t budget);
static void nodedb_vamana__watch_codes(nodedb_vamana *index, uint32_t slot, const struct nodedb_vamana__near *c,
                                       uint32_t n);
static uint32_t nodedb_vamana__judge_beam(const nodedb_vamana *index);
static bool nodedb_vamana__replace_codes(nodedb_vamana *index, uint8_t *codes, nodedb_vamana__coder *coder);
static void nodedb_vamana__codes_made(nodedb_vamana *index, uint32_t live, uint32_t inserted);

/* Of FILES: `before_change` keeps a slot's contents for a save that has still to write them. */
static void nodedb_vamana__before_change(const nodedb_vamana *index, uint32_t slot);
static bool nodedb_vamana__save_keeps_codes(const nodedb_vamana *index, const nodedb_vamana__arrays *old);
static nodedb_status nodedb_vamana__check_writable(const nodedb_vamana *index, nodedb_error *err);
static nodedb_status nodedb_vamana__check_unsaved(const nodedb_vamana *index, nodedb_error *err);
static void nodedb_vamana__save_free(nodedb_vamana *index, struct nodedb_vamana__save_state *save);
static void nodedb_vamana__free_file(nodedb_vamana *index);

/* Of DISK: of an index in a file, what a walk needs may have to be read first. */
static uint64_t nodedb_vamana__damaged_blocks(const nodedb_vamana *index);
static bool nodedb_vamana__is_packed(const nodedb_vamana *index);
static bool nodedb_vamana__is_partial(const nodedb_vamana *index);
static bool nodedb_vamana__have_row(const nodedb_vamana *index, uint32_t slot,
                                    struct nodedb_vamana__read_errors *errors);
static bool nodedb_vamana__have_state(const nodedb_vamana *index, uint32_t slot,
                                      struct nodedb_vamana__read_errors *errors);
static uint32_t nodedb_vamana__have_codes(nodedb_vamana_searcher *s, uint32_t count);
static void nodedb_vamana__read_early(nodedb_vamana_searcher *s);
static nodedb_status nodedb_vamana__set_fetcher(nodedb_vamana_searcher *s, const nodedb_vamana_fetcher *fetcher,
                                                uint32_t beam, nodedb_error *err);
static uint32_t nodedb_vamana__keep_valid(nodedb_vamana_searcher *s, uint32_t count);
static const uint32_t *nodedb_vamana__row_here(nodedb_vamana_searcher *s, const nodedb_vamana__arrays *a,
                                               uint32_t slot);
static uint32_t nodedb_vamana__find_on_disk(const nodedb_vamana *index, uint64_t id,
                                            struct nodedb_vamana__read_errors *errors);
static nodedb_status nodedb_vamana__measure_fetched(nodedb_vamana_searcher *s,
                                                    const struct nodedb_vamana__target *exact,
                                                    struct nodedb_vamana__near *results, size_t most, size_t from,
                                                    size_t n, size_t *heap,
                                                    struct nodedb_vamana__code_error *code_error, nodedb_error *err);
static nodedb_status nodedb_vamana__measure_few(nodedb_vamana_searcher *s, const struct nodedb_vamana__target *exact,
                                                size_t most, size_t from, size_t n, size_t *told, size_t *few,
                                                size_t *heap, struct nodedb_vamana__code_error *code_error,
                                                nodedb_error *err);
static nodedb_status nodedb_vamana__walk_packed(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                struct nodedb_vamana__plan *plan, float norm, size_t *found,
                                                nodedb_error *err);
static uint32_t nodedb_vamana__measure_read(nodedb_vamana_searcher *s, const struct nodedb_vamana__target *target,
                                            uint32_t count);
static void nodedb_vamana__walk_read(nodedb_vamana_searcher *s, const struct nodedb_vamana__target *target,
                                     uint32_t width);
static bool nodedb_vamana__codes_are_judged(const nodedb_vamana *index);
static bool nodedb_vamana__answer_on_disk(struct nodedb_vamana__query_batch *q, uint64_t n, nodedb_status *status,
                                          nodedb_error *err);
static void nodedb_vamana__free_walkers(nodedb_vamana_searcher *s);
static uint64_t nodedb_vamana__walkers_bytes(const nodedb_vamana_searcher *s);
static int nodedb_vamana__open_file(const nodedb_io *io, const char *path, const nodedb_vamana_open_config *config,
                                    uint8_t *block);
static nodedb_status nodedb_vamana__onto_disk(nodedb_vamana *index, const nodedb_vamana_open_config *config,
                                              const struct nodedb_vamana__counts *n, const uint8_t *header,
                                              uint8_t *buffer, nodedb_error *err);
static nodedb_status nodedb_vamana__get_from_disk(const nodedb_vamana *index, uint64_t id, void *out, bool stored,
                                                  nodedb_error *err);
static const void *nodedb_vamana__fetch_id(nodedb_vamana_searcher *s, uint64_t id, nodedb_error *err);
static const void *nodedb_vamana__vector_of_id(nodedb_vamana_searcher *s, uint64_t id, nodedb_error *err);
static nodedb_status nodedb_vamana__verify_meaning(const char *path, const nodedb_vamana_open_config *config,
                                                   uint8_t *buffer, nodedb_error *err);
static void nodedb_vamana__free_disk(nodedb_vamana *index);

/* Of KERNELS. */
static const nodedb_vamana__kernel_set *nodedb_vamana__choose_kernels(const char *name, nodedb_error *err);

/* ===================================================================================================================
 * DISTANCES: how a distance is measured
 *
 * Every distance goes through measure_many: from one target to a list of slots. A target is a query, or a vector of the
 * index, together with the way to measure: on the exact vectors or on their codes.
 * ================================================================================================================ */

/* How to compute a distance. Distances by code order roughly like the exact ones, and have units of their own. IP: the
 * graph too is built by the inner product, which is no metric: a long vector may be nearer to a node than the node
 * itself. See "choosing a row". */
typedef enum nodedb_vamana__measure {
    NODEDB_VAMANA__TO_L2,
    NODEDB_VAMANA__TO_IP,
    NODEDB_VAMANA__TO_COSINE_F32,
    NODEDB_VAMANA__TO_COSINE_BYTES,
    NODEDB_VAMANA__CODE4_L2,
    NODEDB_VAMANA__CODE4_IP,
    NODEDB_VAMANA__CODE8_L2,
    NODEDB_VAMANA__CODE8_IP
} nodedb_vamana__measure;

/* What distances are measured from: a prepared query, or a vector of the index. Lives for one call; borrows all. */
typedef struct nodedb_vamana__target {
    nodedb_vamana__measure measure;
    const nodedb_vamana__arrays *arrays; /* of the slots that are measured */
    const void *vector;
    float constant; /* COSINE_BYTES: 1 / length; CODE*: see code_target */
    float shift;    /* CODE*_IP: see code_target */
    float offset;   /* CODE*: constant times a distance by code, plus this, estimates the exact distance ... */
    float spread;   /* ... with this error, times a length: see may_be_nearer */
    float zero;     /* CODE*_L2, if there are vectors of zeros: their distance */
    bool zeros;
} nodedb_vamana__target;

static float nodedb_vamana__from_cosine(float cosine) { /* rounding must not leave the range */
    float distance = 1 - cosine;
    return distance < 0 ? 0 : distance > 2 ? 2 : distance;
}

/* Distances from `target` to `count` slots. Every list of distances is computed here. */
static void nodedb_vamana__measure_many(const nodedb_vamana *index, const nodedb_vamana__target *target,
                                        const uint32_t *slots, size_t count, float *out) {
    const nodedb_vamana__kernel_set *k = index->kernels;
    const nodedb_vamana__arrays *a = target->arrays;
    const void *from = target->vector;
    float constant = target->constant;
    switch (target->measure) {
    case NODEDB_VAMANA__TO_L2:
        index->many_l2(from, a->vectors, index->stride, slots, count, index->components, out);
        break;
    case NODEDB_VAMANA__TO_IP:
        index->many_dot(from, a->vectors, index->stride, slots, count, index->components, out);
        for (size_t i = 0; i < count; i++) out[i] = -out[i];
        break;
    case NODEDB_VAMANA__TO_COSINE_F32:
        index->many_dot(from, a->vectors, index->stride, slots, count, index->components, out);
        for (size_t i = 0; i < count; i++) out[i] = nodedb_vamana__from_cosine(out[i]);
        break;
    case NODEDB_VAMANA__TO_COSINE_BYTES:
        index->many_dot(from, a->vectors, index->stride, slots, count, index->components, out);
        for (size_t i = 0; i < count; i++) out[i] = nodedb_vamana__from_cosine(out[i] * constant * a->norms[slots[i]]);
        break;
    case NODEDB_VAMANA__CODE4_L2:
        k->l2_code4(from, a->codes, a->coder->stride, slots, count, a->coder->components, out);
        for (size_t i = 0; i < count && target->zeros; i++)
            if (!(a->norms[slots[i]] > 0)) out[i] = target->zero;
        break;
    case NODEDB_VAMANA__CODE8_L2:
        k->l2_u8(from, a->codes, a->coder->stride, slots, count, a->coder->components, out);
        for (size_t i = 0; i < count && target->zeros; i++)
            if (!(a->norms[slots[i]] > 0)) out[i] = target->zero;
        break;
    case NODEDB_VAMANA__CODE4_IP:
        k->dot_code4(from, a->codes, a->coder->stride, slots, count, a->coder->components, out);
        for (size_t i = 0; i < count; i++) out[i] = -sqrtf(a->norms[slots[i]]) * (target->shift + out[i]);
        break;
    case NODEDB_VAMANA__CODE8_IP:
        k->dot_i8_u8(from, a->codes, a->coder->stride, slots, count, a->coder->components, out);
        for (size_t i = 0; i < count; i++) out[i] = -sqrtf(a->norms[slots[i]]) * (target->shift + out[i]);
        break;
    }
}

/* Exact distances from a stored or prepared vector to slots of `a`. */
static nodedb_vamana__target nodedb_vamana__exact_target(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                                         const uint8_t *vector, float norm) {
    nodedb_vamana__target target;
    bool f32 = index->type == NODEDB_VAMANA_F32;
    memset(&target, 0, sizeof target);
    target.arrays = a, target.vector = vector;
    target.measure = index->metric == NODEDB_VAMANA_L2 ? NODEDB_VAMANA__TO_L2 : NODEDB_VAMANA__TO_IP;
    if (index->metric == NODEDB_VAMANA_COSINE) {
        target.measure = f32 ? NODEDB_VAMANA__TO_COSINE_F32 : NODEDB_VAMANA__TO_COSINE_BYTES;
        target.constant = f32 ? 0 : norm;
    }
    return target;
}

/* From the vector in a slot, by the distance that the graph is built with. */
static nodedb_vamana__target nodedb_vamana__slot_target(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                                        uint32_t slot) {
    return nodedb_vamana__exact_target(index, a, nodedb_vamana__vector(index, a, slot), nodedb_vamana__norm(a, slot));
}

/* ---- vectors as the index stores them ---------------------------------------------------------------------------- */

static double nodedb_vamana__component(const nodedb_vamana *index, const uint8_t *vector, uint32_t i) {
    if (index->type == NODEDB_VAMANA_F32) return (double)((const float *)(const void *)vector)[i];
    return index->type == NODEDB_VAMANA_U8 ? (double)vector[i] : (double)((const int8_t *)(const void *)vector)[i];
}

/* Copies a caller's vector to `to` in stored form (zero-padded; COSINE over F32: of length 1), and its norm to *norm.
 * An error names `row` unless it is negative. */
static nodedb_status nodedb_vamana__prepare(const nodedb_vamana *index, const void *vector, uint8_t *to, float *norm,
                                            int64_t row, nodedb_error *err) {
    double squares = 0;
    char where[48] = "";
    memcpy(to, vector, index->vector_bytes);
    memset(to + index->vector_bytes, 0, index->stride - index->vector_bytes);
    if (row >= 0) (void)snprintf(where, sizeof where, " of vector %lld", (long long)row);
    if (index->type == NODEDB_VAMANA_F32) {
        float *x = (float *)(void *)to;
        for (uint32_t i = 0; i < index->dim; i++) {
            if (!nodedb_vamana__is_finite(x[i]))
                return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "component %u%s is not a finite number", (unsigned)i,
                                    where);
            squares += (double)x[i] * (double)x[i];
        }
        if (squares > (double)NODEDB_VAMANA_MAX_LENGTH * (double)NODEDB_VAMANA_MAX_LENGTH)
            return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "the length%s is over %g", where,
                                (double)NODEDB_VAMANA_MAX_LENGTH);
        *norm = (float)squares;
        if (index->metric == NODEDB_VAMANA_COSINE) {
            double length = sqrt(squares);
            *norm = (float)length;
            for (uint32_t i = 0; i < index->dim && length > 0; i++) x[i] = (float)((double)x[i] / length);
        }
    } else {
        for (uint32_t i = 0; i < index->dim; i++) {
            double x = nodedb_vamana__component(index, to, i);
            squares += x * x;
        }
        *norm = (float)squares;
        if (index->metric == NODEDB_VAMANA_COSINE) *norm = squares > 0 ? (float)(1 / sqrt(squares)) : 0;
    }
    return NODEDB_OK;
}

/* ===================================================================================================================
 * THE WALK: the greedy search that everything uses
 *
 * The beam is a sorted list of the nearest slots that the walk has met. The walk takes the nearest one that it has not
 * expanded, measures all neighbours in its row, and puts those that are near enough into the beam. It ends when every
 * entry of the beam has been expanded.
 *
 *   beam, width 5      a* 0.1   b* 0.2   c 0.3   d 0.5   e 0.9        * expanded
 *   expand c           its row holds b, f 0.25 and g 2.0: b is known, g is too far
 *   afterwards         a* 0.1   b* 0.2   f 0.25  c* 0.3  d 0.5        e fell out; f is next
 * ================================================================================================================ */

#define NODEDB_VAMANA__SEEN_PER_BEAM 128u   /* entries of the visited table for each entry of the beam */
#define NODEDB_VAMANA__SEEN_MIN 4096u
#define NODEDB_VAMANA__SEEN_MAX 65536u
#define NODEDB_VAMANA__SEEN_SHARE 4u       /* to choose neighbours, the table serves 1/4 of the widest beam */
#define NODEDB_VAMANA__SCAN_CHUNK 64u      /* vectors that a scan measures at a time */
#define NODEDB_VAMANA__PICK_LISTS 7u       /* of one selection */
#define NODEDB_VAMANA__FITS_ALL 65536u    /* slots from which on all lists have their full length */

/* Errors of one caller's reads from a file, since the query or call began. */
typedef struct nodedb_vamana__read_errors {
    nodedb_status failed;        /* the first failure, and its details; NODEDB_OK: none */
    nodedb_error error;
    uint64_t damaged;            /* damaged nodes, codes, ids or vectors that were skipped */
} nodedb_vamana__read_errors;

/* A slot and its distance: an entry of a beam, a candidate for a row, or a result. */
typedef struct nodedb_vamana__near {
    float distance;
    uint32_t slot;
    uint32_t mark; /* in a beam 1: expanded. Of a candidate: PASSED .. OLD, see NEIGHBOURS */
} nodedb_vamana__near;

/* One thread's scratch memory. No list has more entries than the index has slots. Used by one thread at a time, and
 * rewritten by each use: between calls only the sizes, the memory and the fetcher mean anything. */
struct nodedb_vamana_searcher {
    const nodedb_vamana *index;
    const nodedb_vamana__arrays *arrays; /* that the running call works on; valid until it leaves */
    nodedb_allocator allocator;
    uint32_t beam_max;
    uint32_t fits;                  /* slots of the largest index that the lists serve: a power of two, or FITS_ALL */
    uint32_t list_max;              /* beam_max or `fits`, whichever is less */
    uint32_t seen_most, seen_size;  /* entries that `seen` has, and that walks use: powers of two */
    uint32_t stripe;                /* of the counters of readers */
    void *memory;                   /* one block, for all lists below */
    size_t memory_bytes;
    uint8_t *query;                 /* the query, padded like the index's vectors */
    uint8_t *code_query;            /* the query as the kernels for codes want it */
    float *turned;                  /* `dim` floats: a vector that becomes a code */
    uint32_t *seen;
    nodedb_vamana__near *beam;      /* list_max + 1 */
    nodedb_vamana__near *spare;     /* list_max + 1: results */
    nodedb_vamana__near *candidates; /* candidates_max */
    uint32_t *slots;                /* candidates_max */
    float *distances;               /* candidates_max */
    uint32_t *chosen;               /* degree + 1: the row that a pruning makes */
    uint32_t *picks;                /* PICK_LISTS lists: see nodedb_vamana__selection */
    nodedb_vamana__head head;       /* of the row in `chosen` */
    bool prunes;                    /* it has `chosen` and `picks`: it serves to choose neighbours */
    uint32_t candidates_max, beam_count;
    nodedb_vamana_fetcher fetcher;  /* on disk: reads vectors or nodes */
    bool own_fetcher;
    struct nodedb_vamana__pending_rerank *pending; /* on disk: queries of search_many that wait for reads. NULL: none */
    size_t pending_bytes;            /* with their vectors and results, behind them */
    struct nodedb_vamana__walker *walkers; /* packed: queries of search_many that walk side by side. NULL: none */
    nodedb_vamana__read_errors read_errors; /* on disk: of the query under way */
    uint32_t collected;             /* entries of the beam that are results already, or do not pass the filter */
    uint32_t early;                 /* on disk: reads to start during the walk; 0: none, or they have started */
    uint64_t hops, computed, exact; /* statistics of the query under way */
    uint32_t beam_asked, beam_missed; /* as in the index, which takes them over */
};

/* ---- the beam and the row ---------------------------------------------------------------------------------------- */

NODEDB_VAMANA__INLINE bool nodedb_vamana__nearer(const nodedb_vamana__near *a, float distance, uint32_t slot) {
    return a->distance < distance || (a->distance == distance && a->slot < slot);
}

/* Inserts a slot into the sorted beam of at most `width` entries. Returns its place, or NONE: it is too far, or in the
 * beam already. */
NODEDB_VAMANA__INLINE uint32_t nodedb_vamana__beam_add(nodedb_vamana_searcher *s, uint32_t width, float distance,
                                                       uint32_t slot) {
    uint32_t low = 0, left = s->beam_count;
    if (left == width && nodedb_vamana__nearer(&s->beam[width - 1], distance, slot)) return NODEDB_VAMANA__NONE;
    while (left > 0) { /* without a branch that depends on the distance: it would be mispredicted half the time */
        uint32_t half = (left + 1) / 2;
        low += s->beam[low + half - 1].distance < distance ? half : 0;
        left -= half;
    }
    while (low < s->beam_count && nodedb_vamana__nearer(&s->beam[low], distance, slot)) low++; /* equal distances */
    if (low < s->beam_count && s->beam[low].slot == slot && s->beam[low].distance == distance)
        return NODEDB_VAMANA__NONE;
    if (s->beam_count == width) s->beam_count--;
    memmove(&s->beam[low + 1], &s->beam[low], (s->beam_count - low) * sizeof s->beam[0]);
    s->beam[low].distance = distance;
    s->beam[low].slot = slot;
    s->beam[low].mark = 0;
    s->beam_count++;
    return low;
}

NODEDB_VAMANA__INLINE uint32_t nodedb_vamana__seen_place(uint32_t slot) { return slot * UINT32_C(0x9E3779B1) >> 8; }

/* Puts those of the first `most` neighbours in a row that have not been seen into s->slots; returns how many. */
NODEDB_VAMANA__INLINE uint32_t nodedb_vamana__gather(nodedb_vamana_searcher *s, const uint32_t *row, uint32_t most,
                                                     uint32_t *seen, uint32_t mask) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < most; i++) {
        uint32_t slot = nodedb__load_acquire(&row[i]), *place;
        if (slot == NODEDB_VAMANA__NONE) break;
        place = &seen[nodedb_vamana__seen_place(slot) & mask];
        s->slots[count] = slot; /* no branch: which ones are new is unpredictable */
        count += *place != slot ? 1 : 0;
        *place = slot;
    }
    return count;
}

/* ---- the walk ---------------------------------------------------------------------------------------------------- */

/* Measures `count` slots in s->slots. On disk, exact vectors are read, and slots whose vectors are damaged are dropped.
 * Returns how many are left. */
static uint32_t nodedb_vamana__measure_slots(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                             uint32_t count) {
    bool by_code = target->measure >= NODEDB_VAMANA__CODE4_L2;
    if (nodedb_vamana__is_on_disk(s->index) && !by_code) count = nodedb_vamana__measure_read(s, target, count);
    else nodedb_vamana__measure_many(s->index, target, s->slots, count, s->distances);
    s->computed += count;
    return count;
}

/* Descends from the entry or a start along edges of levels, the first `far` of each row, while they lead nearer. */
static void nodedb_vamana__descend(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width,
                                   nodedb_vamana__near from) {
    const nodedb_vamana__arrays *a = target->arrays;
    bool nearer = true;
    while (nearer) {
        const uint32_t *row = nodedb_vamana__row_here(s, a, from.slot);
        uint32_t i, count;
        if (row == NULL) return;
        count = nodedb_vamana__gather(s, row, nodedb__load_relaxed(&a->heads[from.slot].far), s->seen,
                                      s->seen_size - 1);
        if (nodedb_vamana__is_on_disk(s->index)) count = nodedb_vamana__keep_valid(s, count);
        count = nodedb_vamana__measure_slots(s, target, count);
        for (i = 0, nearer = false; i < count; i++) {
            (void)nodedb_vamana__beam_add(s, width, s->distances[i], s->slots[i]);
            if (s->distances[i] < from.distance)
                from.distance = s->distances[i], from.slot = s->slots[i], nearer = true;
        }
    }
}

/* Puts the entry and the nearest start into the beam. The nearest start is mostly nearer than the entry, and measuring
 * all starts costs less than the hops that it saves. A duplicate start is harmless. */
static void nodedb_vamana__begin_walk(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width) {
    const nodedb_vamana__arrays *a = target->arrays;
    uint32_t entry = nodedb__load_acquire(&a->entry), count = 0, best = 0;
    nodedb_vamana__near nearest = {0, 0, 0};
    s->beam_count = 0;
    memset(s->seen, 0xFF, (size_t)s->seen_size * sizeof *s->seen);
    if (entry == NODEDB_VAMANA__NONE) return;
    s->slots[count++] = entry;
    for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX; i++) {
        uint32_t slot = nodedb__load_acquire(&a->starts[i]);
        if (slot == NODEDB_VAMANA__NONE) break;
        s->slots[count++] = slot;
    }
    if (nodedb_vamana__is_partial(s->index)) count = nodedb_vamana__have_codes(s, count);
    count = nodedb_vamana__measure_slots(s, target, count);
    if (count == 0) return;
    for (uint32_t i = 1; i < count; i++)
        if (s->distances[i] < s->distances[best]) best = i;
    nearest.distance = s->distances[best], nearest.slot = s->slots[best];
    (void)nodedb_vamana__beam_add(s, width, s->distances[0], s->slots[0]);
    if (best != 0) (void)nodedb_vamana__beam_add(s, width, nearest.distance, nearest.slot);
    nodedb_vamana__descend(s, target, width, nearest);
}

/* Greedy search (DiskANN algorithm 1) from where begin_walk begins. Leaves the `width` nearest slots that it met in
 * s->beam, removed ones included, as they still lead to others. A width over list_max is safe: then there are fewer
 * slots than the list has places, and no slot is in the beam twice. `partial`: a row or a code may still be on disk.
 *   The visited table may forget: two slots with one place overwrite each other. A forgotten slot is measured again,
 * and the beam refuses it: it is either in the beam, or was too far, and the threshold only falls. So the result is
 * that of an exact set (ParlayANN does this too). */
NODEDB_VAMANA__INLINE void nodedb_vamana__walk_over(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                                    uint32_t width, bool partial) {
    const nodedb_vamana *index = s->index;
    const nodedb_vamana__arrays *a = target->arrays;
    uint32_t *seen = s->seen, mask = s->seen_size - 1, next = 0;
    assert(width >= 1 && width <= s->beam_max);
    nodedb_vamana__begin_walk(s, target, width);
    while (next < s->beam_count) {
        const uint32_t *row = nodedb_vamana__row(index, a, s->beam[next].slot);
        uint32_t count = 0;
        assert(!s->beam[next].mark);
        s->beam[next].mark = 1;
        s->hops++;
        if (!partial || nodedb_vamana__have_row(index, s->beam[next].slot, &s->read_errors))
            count = nodedb_vamana__gather(s, row, index->degree, seen, mask);
        if (partial) count = nodedb_vamana__have_codes(s, count);
        do next++;
        while (next < s->beam_count && s->beam[next].mark);
        if (s->early > 0 && next >= s->early) nodedb_vamana__read_early(s);
        if (next < s->beam_count) /* fetch the row that is likely next while distances are computed */
            nodedb_vamana__prefetch((const uint8_t *)nodedb_vamana__row(index, a, s->beam[next].slot), 256);
        nodedb_vamana__measure_many(index, target, s->slots, count, s->distances);
        s->computed += count;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = nodedb_vamana__beam_add(s, width, s->distances[i], s->slots[i]);
            if (at < next) next = at;
        }
    }
}

static void nodedb_vamana__walk(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width) {
    if (nodedb_vamana__is_partial(s->index)) nodedb_vamana__walk_over(s, target, width, true);
    else nodedb_vamana__walk_over(s, target, width, false);
}

/* ---- the memory of a searcher ------------------------------------------------------------------------------------ */

/* Entries of one list of a selection: each tier may fill a row. */
static size_t nodedb_vamana__pick_list(const nodedb_vamana_searcher *s) {
    return nodedb_vamana__min(2 * (size_t)s->index->degree + s->index->degree / 8, 2 * (size_t)s->fits) + 4;
}

/* Cuts one block of memory into the searcher's lists and returns its size. `at` NULL: computes the size only. */
static size_t nodedb_vamana__searcher_cut(nodedb_vamana_searcher *s, uint8_t *at) {
    const nodedb_vamana *index = s->index;
    size_t used = 0;
#define NODEDB_VAMANA__CUT(field, type, count)                                                                         \
    do {                                                                                                               \
        s->field = at == NULL ? NULL : (type *)(void *)(at + used);                                                    \
        used += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63;                                                   \
    } while (0)
    NODEDB_VAMANA__CUT(query, uint8_t, index->stride);
    NODEDB_VAMANA__CUT(code_query, uint8_t, ((size_t)index->dim + 63) / 64 * 64);
    NODEDB_VAMANA__CUT(turned, float, index->dim);
    NODEDB_VAMANA__CUT(seen, uint32_t, s->seen_most);
    NODEDB_VAMANA__CUT(beam, nodedb_vamana__near, (size_t)s->list_max + 1);
    NODEDB_VAMANA__CUT(spare, nodedb_vamana__near, (size_t)s->list_max + 1);
    NODEDB_VAMANA__CUT(candidates, nodedb_vamana__near, s->candidates_max);
    NODEDB_VAMANA__CUT(slots, uint32_t, s->candidates_max);
    NODEDB_VAMANA__CUT(distances, float, s->candidates_max);
    NODEDB_VAMANA__CUT(chosen, uint32_t, s->prunes ? (size_t)index->degree + 1 : 0);
    NODEDB_VAMANA__CUT(picks, uint32_t, s->prunes ? NODEDB_VAMANA__PICK_LISTS * nodedb_vamana__pick_list(s) : 0);
#undef NODEDB_VAMANA__CUT
    return used;
}

/* Sets how much of the visited table a walk with such a beam uses. Less is better: every walk clears it. */
static void nodedb_vamana__see_for(nodedb_vamana_searcher *s, uint32_t beam) {
    s->seen_size = NODEDB_VAMANA__SEEN_MIN;
    while (s->seen_size < s->seen_most && s->seen_size / NODEDB_VAMANA__SEEN_PER_BEAM < beam) s->seen_size *= 2;
    if (s->seen_size > s->seen_most) s->seen_size = s->seen_most;
}

/* Sets the sizes of the lists for a beam and so many slots. The visited table may forget (see walk_over), so it stays
 * within the second-level cache. Candidates of a new node are its beam, that of each level, and a row; of a row that is
 * pruned, two rows; of a scan, a chunk. */
static void nodedb_vamana__searcher_shape(nodedb_vamana_searcher *s, uint32_t beam, uint64_t slots) {
    size_t all = 2 * (size_t)beam + 4 * (size_t)s->index->degree + 4 * NODEDB_VAMANA__SCAN_CHUNK;
    s->beam_max = beam;
    for (s->fits = 1; s->fits < slots && s->fits < NODEDB_VAMANA__FITS_ALL;) s->fits *= 2;
    s->list_max = s->fits == NODEDB_VAMANA__FITS_ALL || s->fits > beam ? beam : s->fits;
    s->candidates_max = (uint32_t)nodedb_vamana__min(all, (size_t)8 * s->fits + 16);
    if (s->fits == NODEDB_VAMANA__FITS_ALL) s->candidates_max = (uint32_t)all;
    s->seen_most = NODEDB_VAMANA__SEEN_MAX;
    nodedb_vamana__see_for(s, s->prunes && s->index->beam_adapts ? beam / NODEDB_VAMANA__SEEN_SHARE : beam);
    if (s->seen_size > 8 * s->fits) s->seen_size = 8 * s->fits;
    s->seen_most = s->seen_size;
    s->memory_bytes = nodedb_vamana__searcher_cut(s, NULL);
}

/* Grows the lists for a beam (or a number of results) in an index of so many slots. On failure nothing changes. */
static nodedb_status nodedb_vamana__searcher_fit(nodedb_vamana_searcher *s, uint32_t beam, uint64_t slots,
                                                 nodedb_error *err) {
    nodedb_vamana_searcher fit = *s;
    if (s->memory != NULL && beam <= s->beam_max && (slots <= s->fits || s->fits == NODEDB_VAMANA__FITS_ALL))
        return NODEDB_OK;
    nodedb_vamana__searcher_shape(&fit, beam > s->beam_max ? beam : s->beam_max, slots > s->fits ? slots : s->fits);
    fit.memory = nodedb__alloc_zero(&s->allocator, fit.memory_bytes, NODEDB_CACHE_LINE_BYTES);
    if (fit.memory == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a beam of %u", (unsigned)beam);
    (void)nodedb_vamana__searcher_cut(&fit, (uint8_t *)fit.memory);
    if (s->memory != NULL) { /* the query is prepared before its plan */
        memcpy(fit.query, s->query, s->index->stride);
        nodedb__release(&s->allocator, s->memory, s->memory_bytes);
    }
    *s = fit;
    return NODEDB_OK;
}

/* `prunes`: the searcher serves to choose neighbours. */
static nodedb_vamana_searcher *nodedb_vamana__searcher_new(const nodedb_vamana *index, uint32_t beam, uint64_t slots,
                                                           bool prunes, nodedb_error *err) {
    nodedb_vamana_searcher *s =
        (nodedb_vamana_searcher *)nodedb__alloc_zero(&index->allocator, sizeof *s, NODEDB_CACHE_LINE_BYTES);
    if (s == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a searcher");
        return NULL;
    }
    s->index = index, s->prunes = prunes;
    s->allocator = index->allocator;
    s->stripe = nodedb__add_relaxed(&index->readers->next_stripe, 1u) % NODEDB_VAMANA__STRIPES;
    if (nodedb_vamana__searcher_fit(s, beam, slots, err) == NODEDB_OK) return s;
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

NODEDB_VAMANA_API void nodedb_vamana_searcher_destroy(nodedb_vamana_searcher *searcher) {
    nodedb_allocator allocator;
    if (searcher == NULL) return;
    allocator = searcher->allocator;
    if (searcher->own_fetcher && searcher->fetcher.destroy != NULL) searcher->fetcher.destroy(searcher->fetcher.ctx);
    nodedb__release(&allocator, searcher->memory, searcher->memory_bytes);
    nodedb__release(&allocator, searcher->pending, searcher->pending_bytes);
    nodedb_vamana__free_walkers(searcher);
    nodedb__release(&allocator, searcher, sizeof *searcher);
}

NODEDB_VAMANA_API uint64_t nodedb_vamana_searcher_memory_bytes(const nodedb_vamana_searcher *searcher) {
    return searcher == NULL ? 0
                            : searcher->memory_bytes + searcher->pending_bytes + sizeof *searcher +
                                  nodedb_vamana__walkers_bytes(searcher);
}

/* ===================================================================================================================
 * NEIGHBOURS: which edges a node gets
 *
 * A walk finds candidates for a row; pruning chooses among them. Beside the edges that pruning chooses there are two
 * kinds that keep the graph in one piece: edges of levels lead out of clusters, and edges of the tree reach every node.
 * ================================================================================================================ */

#define NODEDB_VAMANA__BUILD_GAIN 2u   /* choose neighbours by codes if vectors are so many times larger: a million of
                                          128 bytes are built in 114 s and not 140, with the same recall */
#define NODEDB_VAMANA__SPARE 8u        /* a row that overflows is pruned to 7/8, so that not every insert prunes it, */
#define NODEDB_VAMANA__SPARE_BATCH 16u /* or to 15/16 in a build, which prunes it once for each batch */
#define NODEDB_VAMANA__SAME_MAX 3u     /* edges that a pruning keeps to vectors equal to the node's own */
#define NODEDB_VAMANA__SAME_BELOW 1e-6f /* COSINE and IP: nearer vectors count as equal; the rest is rounding */
#define NODEDB_VAMANA__LEVEL_BITS 4u   /* one node in 16 is of level 1 or more, one in 256 of 2 or more ... */
#define NODEDB_VAMANA__LEVEL_BEAM 128u /* entries of the beam that finds a node's neighbours of a level */

/* What is known of a candidate for a row: the sum of these bits. */
enum {
    NODEDB_VAMANA__PASSED = 1, /* it passed the relaxed rule among all PASSED ones of this row ... */
    NODEDB_VAMANA__STRICT = 2, /* ... and the strict rule among the STRICT ones: neither is tried again */
    NODEDB_VAMANA__CHILD = 4,  /* a child of this node in the tree: it must stay */
    NODEDB_VAMANA__FAR = 8,    /* it is an edge of the node's levels */
    NODEDB_VAMANA__OLD = 16    /* it is in the row already */
};

/* ---- candidates -------------------------------------------------------------------------------------------------- */

/* Sorts candidates for a node by distance (Shell's sort: the lists are short and mostly in order). Equal distances, as
 * in a crowd of equal vectors, are ordered at random: by slot, all of the crowd would point to the same few. */
static bool nodedb_vamana__candidate_before(const nodedb_vamana__near *a, const nodedb_vamana__near *b, uint64_t salt) {
    uint64_t x, y;
    if (a->distance != b->distance) return a->distance < b->distance;
    x = nodedb_mix64(salt ^ a->slot), y = nodedb_mix64(salt ^ b->slot);
    return x != y ? x < y : a->slot < b->slot;
}

static void nodedb_vamana__sort_candidates(nodedb_vamana__near *c, size_t n, uint64_t salt) {
    static const size_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    size_t g, i, j;
    for (g = 0; g < sizeof gaps / sizeof gaps[0]; g++)
        for (i = gaps[g]; i < n; i++) {
            nodedb_vamana__near one = c[i];
            for (j = i; j >= gaps[g] && nodedb_vamana__candidate_before(&one, &c[j - gaps[g]], salt); j -= gaps[g])
                c[j] = c[j - gaps[g]];
            c[j] = one;
        }
}

/* The level of a new node: a hash of its id, so that replicas agree. See levels. */
static uint8_t nodedb_vamana__level_of(const nodedb_vamana *index, uint64_t id) {
    uint64_t bits = nodedb_mix64(~id);
    uint32_t most = index->degree / 4 < NODEDB_VAMANA__LEVELS_MAX ? index->degree / 4 : NODEDB_VAMANA__LEVELS_MAX;
    uint8_t level = 0;
    for (; level < most && (bits & ((1u << NODEDB_VAMANA__LEVEL_BITS) - 1)) == 0; level++)
        bits >>= NODEDB_VAMANA__LEVEL_BITS;
    return level;
}

static uint32_t nodedb_vamana__level(const nodedb_vamana__arrays *a, uint32_t slot) { return a->heads[slot].level; }

static bool nodedb_vamana__is_child(const nodedb_vamana__arrays *a, uint32_t parent, uint32_t slot) {
    return nodedb__load_relaxed(&a->parents[slot]) == parent;
}

/* ---- choosing a row ---------------------------------------------------------------------------------------------- */

/* DiskANN's robust prune in two tiers. A chosen t occludes a candidate c for the row of p if
 *     alpha d(t, c) <= d(p, c)
 * because then the detour over t is short. With alpha = 1, the strict rule, this leaves few edges in diverse
 * directions. With the index's alpha, the relaxed rule, it leaves more edges and makes shorter walks. All candidates
 * that pass the strict rule come first; those that pass the relaxed rule fill what is left of the row. The paper has
 * the relaxed rule alone. In high dimensions all of the nearest pass that rule and fill the row, and the diverse ones
 * that lead elsewhere are cut.
 *
 * IP: d(u, c) is |c|^2 - <u, c>, by how much c, as a query, prefers itself to u. Among vectors of equal length that is
 * half the squared distance, so the rule is the one of L2. Where it is not positive, u itself is a better answer than
 * c, and no alpha applies. The relaxed rule occludes c only if t is nearer by the squared distance too. Otherwise,
 * where a few long vectors are a better answer than most others to nearly all queries, rows would be nearly empty. */

/* The candidates chosen so far, the nearest first. */
typedef struct nodedb_vamana__passed {
    uint32_t *slots, *strict;   /* at each place the slot, and 1 if it passes the strict rule, else 0 */
    uint32_t count;
} nodedb_vamana__passed;

/* One selection of a row, in lists of a searcher. Lives for one call of select. */
typedef struct nodedb_vamana__selection {
    const nodedb_vamana *index;
    nodedb_vamana_searcher *s;
    uint32_t slot, keep;
    nodedb_vamana__passed all, fresh; /* fresh: those of `all` that were not PASSED before */
    uint32_t *same, *forced;          /* equal vectors, and children that a rule occludes */
    uint32_t *others;                 /* scratch */
    uint32_t same_count, forced_count, strict_count, relaxed_children;
    uint32_t children;                /* among the candidates that are still to be visited */
} nodedb_vamana__selection;

static void nodedb_vamana__pass(nodedb_vamana__passed *p, uint32_t slot, bool strict) {
    p->slots[p->count] = slot, p->strict[p->count++] = strict;
}

/* True if a vector at this distance from the slot's own equals it. */
static bool nodedb_vamana__is_same(const nodedb_vamana *index, uint32_t slot, const nodedb_vamana__near *c) {
    const float *norms = index->arrays->norms;
    if (index->metric == NODEDB_VAMANA_L2) return c->distance <= 0;
    if (index->metric == NODEDB_VAMANA_COSINE) return c->distance <= NODEDB_VAMANA__SAME_BELOW;
    return norms[slot] + norms[c->slot] + 2 * c->distance <= NODEDB_VAMANA__SAME_BELOW * (norms[slot] + norms[c->slot]);
}

/* Measures a candidate against those that passed, a few at a time, as most are occluded early. True: one of them
 * occludes it by the relaxed rule; or, if only the strict tier has room, one of that tier by the strict rule. *strict:
 * it passes the strict rule. */
static bool nodedb_vamana__is_occluded(nodedb_vamana__selection *x, const nodedb_vamana__near *c,
                                       const nodedb_vamana__passed *p, bool *strict, uint32_t strict_only) {
    const nodedb_vamana *index = x->index;
    nodedb_vamana__target target;
    const float *norms = index->metric == NODEDB_VAMANA_IP ? index->arrays->norms : NULL;
    float own = norms != NULL ? norms[c->slot] : 0, far = own + c->distance;
    float apart = norms != NULL ? norms[x->slot] + far + c->distance : 0; /* squared distance */
    float alpha = far > 0 ? index->alpha : 1;
    const uint32_t *slots = p->slots;
    uint32_t i, j, some, count = p->count, occluded = 0, out, shut;
    if (count == 0) return false;
    target = nodedb_vamana__slot_target(index, index->arrays, c->slot);
    for (i = 0, j = 0; i < count && strict_only != 0; i++)
        if (p->strict[i] != 0) x->others[j++] = p->slots[i];
    if (strict_only != 0) slots = x->others, count = j;
    for (i = 0; i < count; i += some) {
        float distances[4];
        some = count - i < 4 ? count - i : 4;
        nodedb_vamana__measure_many(index, &target, slots + i, some, distances);
        x->s->computed += some;
        for (j = 0, out = 0; j < some; j++) { /* no branch: it would be unpredictable */
            occluded |= (own + distances[j] <= far) & (strict_only | p->strict[i + j]);
            shut = alpha * (own + distances[j]) <= far;
            if (norms != NULL) /* IP: and by the squared distance too */
                shut &= index->alpha * (norms[slots[i + j]] + own + 2 * distances[j]) <= apart;
            out |= shut;
        }
        if (out != 0 || (strict_only != 0 && occluded != 0)) return true;
    }
    *strict = *strict && occluded == 0;
    return false;
}

/* Puts a candidate into its tier, or drops it. */
static void nodedb_vamana__select_one(nodedb_vamana__selection *x, const nodedb_vamana__near *c, uint32_t mark) {
    bool fresh = (mark & NODEDB_VAMANA__PASSED) == 0, child = (mark & NODEDB_VAMANA__CHILD) != 0;
    bool strict = fresh || (mark & NODEDB_VAMANA__STRICT) != 0, out;
    uint32_t certain = x->same_count + x->strict_count + x->forced_count + x->relaxed_children + x->children;
    uint32_t relaxed = x->all.count - x->strict_count - x->relaxed_children;
    bool full = !child && certain + relaxed >= x->keep; /* now the row can only become more diverse */
    if (!child && (certain >= x->keep || (full && !strict))) return;
    if (nodedb_vamana__is_same(x->index, x->slot, c)) {
        if (x->same_count < NODEDB_VAMANA__SAME_MAX || child) x->same[x->same_count++] = c->slot;
        return;
    }
    out = nodedb_vamana__is_occluded(x, c, fresh ? &x->all : &x->fresh, &strict, full);
    if (!out && !fresh && !strict && (mark & NODEDB_VAMANA__STRICT) != 0) /* not tried against all yet */
        out = nodedb_vamana__is_occluded(x, c, &x->all, &strict, full);
    if (out && !child) return;
    if (out) {
        x->forced[x->forced_count++] = c->slot;
        return;
    }
    nodedb_vamana__pass(&x->all, c->slot, strict);
    if (fresh) nodedb_vamana__pass(&x->fresh, c->slot, strict);
    x->strict_count += strict, x->relaxed_children += child && !strict;
}

/* Chooses at most `keep` of the sorted candidates: edges of a level, or, for level 0, edges that are of no level. */
static void nodedb_vamana__select(nodedb_vamana__selection *x, const nodedb_vamana *index, nodedb_vamana_searcher *s,
                                  uint32_t slot, uint32_t level, size_t n, uint32_t keep) {
    size_t list = nodedb_vamana__pick_list(s);
    const nodedb_vamana__near *c = s->candidates;
    uint32_t known = level > 0 ? 0 : NODEDB_VAMANA__PASSED | NODEDB_VAMANA__STRICT | NODEDB_VAMANA__CHILD, mark;
    memset(x, 0, sizeof *x);
    x->index = index, x->s = s, x->slot = slot, x->keep = keep;
    x->same = s->picks, x->forced = x->same + list, x->others = x->forced + list;
    x->all.slots = x->others + list, x->all.strict = x->all.slots + list;
    x->fresh.slots = x->all.strict + list, x->fresh.strict = x->fresh.slots + list;
    for (size_t i = 0; i < n && level == 0; i++)
        x->children += (c[i].mark & (NODEDB_VAMANA__CHILD | NODEDB_VAMANA__FAR)) == NODEDB_VAMANA__CHILD &&
                       (i == 0 || c[i].slot != c[i - 1].slot);
    for (size_t i = 0; i < n; i++) {
        if (c[i].slot == slot || (i > 0 && c[i].slot == c[i - 1].slot) || (c[i].mark & NODEDB_VAMANA__FAR) != 0 ||
            (level > 0 && nodedb_vamana__level(index->arrays, c[i].slot) < level))
            continue;
        mark = c[i].mark & known;
        x->children -= (mark & NODEDB_VAMANA__CHILD) != 0;
        nodedb_vamana__select_one(x, &c[i], mark);
    }
}

/* Appends one tier of those that passed, 1 the strict one, 0 the other, until there are `keep`. Returns how many. */
static uint32_t nodedb_vamana__append_tier(uint32_t *chosen, uint32_t count, const nodedb_vamana__passed *p,
                                           uint32_t tier, uint32_t keep) {
    for (uint32_t i = 0; i < p->count && count < keep; i++)
        if (p->strict[i] == tier) chosen[count++] = p->slots[i];
    return count;
}

static uint32_t nodedb_vamana__append(uint32_t *chosen, uint32_t count, const uint32_t *more, uint32_t n) {
    memcpy(chosen + count, more, n * sizeof *more);
    return count + n;
}

/* Chooses the edges of a node's levels again, among the candidates, and marks them FAR. */
static void nodedb_vamana__choose_far(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot, size_t n,
                                      uint32_t keep) {
    uint32_t levels = nodedb_vamana__level(index->arrays, slot), count, share;
    nodedb_vamana__selection x;
    share = (uint32_t)nodedb_vamana__min(keep / 2, 255) / levels;
    if (share == 0) share = 1;
    for (size_t i = 0; i < n; i++) s->candidates[i].mark &= ~(uint32_t)NODEDB_VAMANA__FAR;
    for (uint32_t level = levels; level > 0; level--) {
        nodedb_vamana__select(&x, index, s, slot, level, n, share);
        count = nodedb_vamana__append(s->chosen, 0, x.same, x.same_count);
        count = nodedb_vamana__append_tier(s->chosen, count, &x.all, 1, share);
        count = nodedb_vamana__append_tier(s->chosen, count, &x.all, 0, share);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < count; j++)
                if (s->candidates[i].slot == s->chosen[j]) s->candidates[i].mark |= NODEDB_VAMANA__FAR;
    }
}

/* Puts the edges of the levels of `slot` into s->chosen and returns how many. The row's own stay, unless there is a new
 * candidate for them. */
static uint32_t nodedb_vamana__far_edges(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot, size_t n,
                                         uint32_t keep) {
    const nodedb_vamana__near *c = s->candidates;
    uint32_t count = 0;
    bool is_new = false;
    if (nodedb_vamana__level(index->arrays, slot) == 0) return 0;
    for (size_t i = 0; i < n && !is_new; i++)
        is_new = (c[i].mark & NODEDB_VAMANA__OLD) == 0 && nodedb_vamana__level(index->arrays, c[i].slot) > 0;
    if (is_new) nodedb_vamana__choose_far(index, s, slot, n, keep);
    for (size_t i = 0; i < n; i++)
        if ((c[i].mark & NODEDB_VAMANA__FAR) != 0 && (i == 0 || c[i].slot != c[i - 1].slot))
            s->chosen[count++] = c[i].slot;
    assert(count < keep);
    return count;
}

/* A slot may be among the candidates twice: from the walk and from the row. Gives all its entries all its marks. */
static void nodedb_vamana__join_marks(nodedb_vamana__near *c, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (c[i].slot == c[i - 1].slot) c[i].mark |= c[i - 1].mark;
    for (size_t i = n; i-- > 1;)
        if (c[i].slot == c[i - 1].slot) c[i - 1].mark |= c[i].mark;
}

/* Chooses at most `keep` of s->candidates[0..n) for the row of `slot`: leaves them in s->chosen, what is known of the
 * row in s->head, and returns how many. Children in the tree always stay. Candidates may repeat and may hold `slot`. A
 * node of a level reserves up to half of its row for nodes of its levels. */
static uint32_t nodedb_vamana__prune(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot, size_t n,
                                     uint32_t keep) {
    uint32_t count, far;
    nodedb_vamana__selection x;
    assert(keep >= 2 && keep <= index->degree && n <= s->candidates_max && s->prunes);
    nodedb_vamana__sort_candidates(s->candidates, n, nodedb_mix64(index->seed ^ slot));
    nodedb_vamana__join_marks(s->candidates, n);
    count = far = nodedb_vamana__far_edges(index, s, slot, n, keep);
    nodedb_vamana__select(&x, index, s, slot, 0, n, keep - far);
    keep -= x.forced_count;
    count = nodedb_vamana__append(s->chosen, count, x.same, x.same_count);
    count = nodedb_vamana__append_tier(s->chosen, count, &x.all, 1, keep);
    s->head.far = (uint8_t)far, s->head.strict = (uint8_t)nodedb_vamana__min(count - far, 255);
    for (uint32_t i = 0; i < x.all.count && x.relaxed_children > 0; i++) /* children come first in the relaxed tier */
        if (x.all.strict[i] == 0 && nodedb_vamana__is_child(index->arrays, slot, x.all.slots[i]))
            s->chosen[count++] = x.all.slots[i], x.all.strict[i] = 2;
    count = nodedb_vamana__append_tier(s->chosen, count, &x.all, 0, keep);
    s->head.pruned = (uint8_t)nodedb_vamana__min(count - far, 255);
    count = nodedb_vamana__append(s->chosen, count, x.forced, x.forced_count);
    assert(count <= keep + x.forced_count);
    return count;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Writes a whole row and what is known of it; the level stays. A reader that reads the row meanwhile finds some of the
 * old neighbours and some of the new, and may visit all of them. */
static void nodedb_vamana__set_row(const nodedb_vamana *index, const nodedb_vamana__arrays *a, uint32_t from,
                                   const uint32_t *neighbours, uint32_t count, nodedb_vamana__head head) {
    uint32_t *row = nodedb_vamana__row(index, a, from);
    assert(count <= index->degree);
    nodedb_vamana__before_change(index, from);
    a->heads[from].strict = head.strict, a->heads[from].pruned = head.pruned;
    nodedb__store_relaxed(&a->heads[from].far, head.far);
    for (uint32_t i = 0; i < index->degree; i++) {
        uint32_t slot = i < count ? neighbours[i] : NODEDB_VAMANA__NONE;
        if (row[i] != slot) nodedb__store_release(&row[i], slot);
    }
}

/* Gives a free slot an empty row and level 0. */
static void nodedb_vamana__clear_row(const nodedb_vamana *index, const nodedb_vamana__arrays *a, uint32_t slot) {
    nodedb_vamana__head nothing = {0, 0, 0, 0};
    nodedb_vamana__set_row(index, a, slot, NULL, 0, nothing);
    a->heads[slot].level = 0;
}

/* Appends all neighbours in the row of `slot` to the candidates; returns the new number of candidates. */
static size_t nodedb_vamana__row_as_candidates(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                               size_t n) {
    const uint32_t *row = nodedb_vamana__row(index, index->arrays, slot);
    nodedb_vamana__head head = index->arrays->heads[slot];
    uint32_t count = nodedb_vamana__row_count(index, row);
    for (uint32_t i = 0; i < count; i++, n++) {
        uint32_t mark = NODEDB_VAMANA__OLD;
        if (i < head.far) mark |= NODEDB_VAMANA__FAR;
        else if (i - head.far < head.strict) mark |= NODEDB_VAMANA__STRICT | NODEDB_VAMANA__PASSED;
        else if (i - head.far < head.pruned) mark |= NODEDB_VAMANA__PASSED;
        if (nodedb_vamana__is_child(index->arrays, slot, row[i])) mark |= NODEDB_VAMANA__CHILD;
        s->candidates[n].slot = row[i], s->candidates[n].mark = mark;
    }
    return n;
}

static void nodedb_vamana__measure_candidates(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                              size_t from, size_t n) {
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, index->arrays, slot);
    size_t i;
    assert(n <= s->candidates_max);
    for (i = from; i < n; i++) s->slots[i] = s->candidates[i].slot;
    nodedb_vamana__measure_many(index, &target, s->slots + from, n - from, s->distances + from);
    s->computed += n - from;
    for (i = from; i < n; i++) s->candidates[i].distance = s->distances[i];
}

/* Adds edges from `from` to `count` slots, the low halves of `to`, except those that its row has. A row that becomes
 * too long is pruned to `keep`. */
static void nodedb_vamana__add_edges(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t from, const uint64_t *to,
                                     size_t count, uint32_t keep) {
    uint32_t *row = nodedb_vamana__row(index, index->arrays, from);
    uint32_t had = nodedb_vamana__row_count(index, row), used = had;
    size_t n = 0, j;
    nodedb_vamana__before_change(index, from);
    for (size_t i = 0; i <= count; i++) { /* the last turn prunes what is left */
        if (i < count) {
            for (j = 0; j < had && row[j] != (uint32_t)to[i]; j++) {
            }
            if (j < had) continue;
            if (n == 0 && used < index->degree) {
                nodedb__store_release(&row[used++], (uint32_t)to[i]);
                continue;
            }
            if (n == 0) n = nodedb_vamana__row_as_candidates(index, s, from, 0);
            s->candidates[n].slot = (uint32_t)to[i], s->candidates[n].mark = 0;
            if (nodedb_vamana__is_child(index->arrays, from, (uint32_t)to[i]))
                s->candidates[n].mark = NODEDB_VAMANA__CHILD;
            n++;
        }
        if (n == 0 || (i < count && n < 2 * (size_t)index->degree)) continue;
        nodedb_vamana__measure_candidates(index, s, from, 0, n);
        used = nodedb_vamana__prune(index, s, from, n, keep);
        nodedb_vamana__set_row(index, index->arrays, from, s->chosen, used, s->head);
        n = 0, had = used;
    }
}

static void nodedb_vamana__add_edge(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t from, uint32_t to) {
    uint64_t one = to;
    nodedb_vamana__add_edges(index, s, from, &one, 1, index->degree - index->degree / NODEDB_VAMANA__SPARE);
}

/* Appends a live slot of the beam or the spare list to the `n` candidates; returns their new number. */
static size_t nodedb_vamana__add_candidate(const nodedb_vamana *index, nodedb_vamana_searcher *s,
                                           const nodedb_vamana__near *one, size_t n) {
    if (index->arrays->states[one->slot] != NODEDB_VAMANA__LIVE) return n;
    s->candidates[n] = *one, s->candidates[n].mark = 0;
    return n + 1;
}

/* ---- levels ------------------------------------------------------------------------------------------------------ */

/* A cluster of more nodes than a row has places fills the rows of its members: no edge leads out of it, or into it. So
 * some nodes have edges of levels, which reach farther. One node in 16 is of level 1 or more, one in 256 of level 2 or
 * more, as in HNSW (Malkov and Yashunin, 2016). Half of such a node's row is for the nearest and most diverse nodes of
 * each of its levels. There is still one graph and one walk. The starts are the nodes of the highest levels. */

/* Leaves the nearest nodes of `level` and above in s->beam: a walk over such nodes only. */
static void nodedb_vamana__walk_level(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width,
                                      uint32_t level) {
    const nodedb_vamana *index = s->index;
    const nodedb_vamana__arrays *a = target->arrays;
    uint32_t count = 0, next = 0;
    s->beam_count = 0;
    memset(s->seen, 0xFF, (size_t)s->seen_size * sizeof *s->seen);
    for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX && a->starts[i] != NODEDB_VAMANA__NONE; i++)
        if (nodedb_vamana__level(a, a->starts[i]) >= level) s->slots[count++] = a->starts[i];
    for (;;) {
        nodedb_vamana__measure_many(index, target, s->slots, count, s->distances);
        s->computed += count;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = nodedb_vamana__beam_add(s, width, s->distances[i], s->slots[i]);
            if (at < next) next = at;
        }
        while (next < s->beam_count && s->beam[next].mark) next++;
        if (next == s->beam_count) return;
        s->beam[next].mark = 1;
        count = nodedb_vamana__gather(s, nodedb_vamana__row(index, a, s->beam[next].slot),
                                      a->heads[s->beam[next].slot].far, s->seen, s->seen_size - 1);
        for (uint32_t i = 0; i < count;) {
            if (nodedb_vamana__level(a, s->slots[i]) >= level) i++;
            else s->slots[i] = s->slots[--count];
        }
    }
}

/* Makes a new node a start if there is room for one more, or in place of a start of a lower level. */
static void nodedb_vamana__offer_start(nodedb_vamana__arrays *a, uint32_t slot) {
    uint32_t level = nodedb_vamana__level(a, slot), want = a->slots / NODEDB_VAMANA__START_SHARE + 1;
    uint32_t lowest = level, at = NODEDB_VAMANA__STARTS_MAX, i;
    if (level == 0) return;
    if (want > NODEDB_VAMANA__STARTS_MAX) want = NODEDB_VAMANA__STARTS_MAX;
    for (i = 0; i < want && a->starts[i] != NODEDB_VAMANA__NONE; i++) {
        uint32_t other = nodedb_vamana__level(a, a->starts[i]);
        if (other < lowest) lowest = other, at = i;
    }
    if (i < want) at = i;
    if (at < NODEDB_VAMANA__STARTS_MAX) nodedb__store_release(&a->starts[at], slot);
}

/* Replaces a start that was removed by its neighbour of the highest level. Without one there is a start less. */
static void nodedb_vamana__replace_start(const nodedb_vamana *index, nodedb_vamana__arrays *a, uint32_t slot) {
    const uint32_t *row = nodedb_vamana__row(index, a, slot);
    uint32_t at, last, j, best = NODEDB_VAMANA__NONE, highest = 0;
    for (at = 0; at < NODEDB_VAMANA__STARTS_MAX && a->starts[at] != slot; at++) {
    }
    if (at == NODEDB_VAMANA__STARTS_MAX) return;
    for (last = at; last + 1 < NODEDB_VAMANA__STARTS_MAX && a->starts[last + 1] != NODEDB_VAMANA__NONE;) last++;
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++) {
        uint32_t level = nodedb_vamana__level(a, row[i]);
        if (level <= highest || a->states[row[i]] != NODEDB_VAMANA__LIVE) continue;
        for (j = 0; j <= last && a->starts[j] != row[i]; j++) {
        }
        if (j > last) best = row[i], highest = level;
    }
    nodedb__store_release(&a->starts[at], best != NODEDB_VAMANA__NONE ? best : a->starts[last]);
    if (best == NODEDB_VAMANA__NONE) nodedb__store_release(&a->starts[last], NODEDB_VAMANA__NONE);
}

/* ---- the beam that finds neighbours ------------------------------------------------------------------------------ */

/* Where vectors have hundreds of independent components, or are many, a beam that serves elsewhere does not meet the
 * nearest of a new node. So one node in 64 walks a second time, with twice the beam. The beam grows, up to four times,
 * while the second walk finds more than 1 in 50 of the nearest ten that the first missed. While it finds fewer than 1
 * in 400, the beam shrinks again. */

#define NODEDB_VAMANA__BEAM_GROWS 4u     /* times beam_build at most */
#define NODEDB_VAMANA__BEAM_PROBED 64u  /* one node in so many walks twice, chosen by id and seed */
#define NODEDB_VAMANA__BEAM_FIRST 2048u  /* live nodes; a walk meets nearly all of fewer */
#define NODEDB_VAMANA__BEAM_WINDOW 320u  /* nearest counted before the beam changes */
#define NODEDB_VAMANA__BEAM_WIDENS 50u
#define NODEDB_VAMANA__BEAM_NARROWS 400u

/* The widest beam that finds neighbours. */
static uint32_t nodedb_vamana__beam_most(const nodedb_vamana *index) {
    return index->beam_adapts ? NODEDB_VAMANA__BEAM_GROWS * index->beam_build : index->beam_build;
}

/* After a walk to a node: if it is this node's turn, walks again with twice the beam and counts what only that
 * finds. */
static void nodedb_vamana__probe_beam(const nodedb_vamana *index, nodedb_vamana_searcher *s,
                                      const nodedb_vamana__target *target, uint32_t slot) {
    uint32_t wide = 2 * index->beam_now, narrow = s->beam_count, found, j;
    if (!index->beam_adapts || index->live < NODEDB_VAMANA__BEAM_FIRST ||
        nodedb_mix64(index->arrays->ids[slot] + index->seed * 7 + 1) % NODEDB_VAMANA__BEAM_PROBED != 0)
        return;
    memcpy(s->spare, s->beam, narrow * sizeof *s->spare);
    nodedb_vamana__walk(s, target, wide < s->beam_max ? wide : s->beam_max);
    found = s->beam_count < NODEDB_VAMANA__JUDGE_NEAREST ? s->beam_count : NODEDB_VAMANA__JUDGE_NEAREST;
    for (uint32_t i = 0; i < found; i++) {
        for (j = 0; j < narrow && s->spare[j].slot != s->beam[i].slot; j++) {
        }
        s->beam_missed += j == narrow;
    }
    s->beam_asked += found;
}

/* Adds what a searcher has counted to the index. */
static void nodedb_vamana__count_beam(nodedb_vamana *index, nodedb_vamana_searcher *s) {
    index->beam_asked += s->beam_asked, index->beam_missed += s->beam_missed;
    s->beam_asked = s->beam_missed = 0;
}

/* Widens or narrows the beam by what was counted. */
static void nodedb_vamana__adapt_beam(nodedb_vamana *index) {
    uint32_t now = index->beam_now, most = nodedb_vamana__beam_most(index);
    if (index->beam_asked < NODEDB_VAMANA__BEAM_WINDOW) return;
    if (index->beam_missed > index->beam_asked / NODEDB_VAMANA__BEAM_WIDENS) now += now / 4;
    else if (index->beam_missed < index->beam_asked / NODEDB_VAMANA__BEAM_NARROWS + 1) now -= now / 8;
    now = now > most ? most : now < index->beam_build ? index->beam_build : now;
    nodedb__store_relaxed(&index->beam_now, now); /* inspect reads it */
    index->beam_asked = index->beam_missed = 0;
}

/* ---- choosing the neighbours of a node --------------------------------------------------------------------------- */

/* Chooses the neighbours of a node whose vector is in its slot. Candidates are what a walk to it meets (on codes, if
 * there are some) and what its row has; exact distances decide. Leaves them in s->chosen and returns how many.
 * `watched`: the index, to count how its codes do; NULL in a build, whose threads must not all count. */
static uint32_t nodedb_vamana__choose_neighbours(const nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                                 nodedb_vamana *watched) {
    const nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, a, slot), code;
    bool by_code = a->codes != NULL && index->stride >= NODEDB_VAMANA__BUILD_GAIN * a->coder->stride;
    size_t n = 0, had;
    uint32_t walked;
    s->arrays = a;
    if (by_code)
        code = nodedb_vamana__code_target(s, (const uint8_t *)target.vector, nodedb_vamana__norm(a, slot));
    nodedb_vamana__see_for(s, index->beam_now);
    nodedb_vamana__walk(s, by_code ? &code : &target, index->beam_now);
    nodedb_vamana__probe_beam(index, s, by_code ? &code : &target, slot);
    for (uint32_t i = 0; i < s->beam_count; i++) n = nodedb_vamana__add_candidate(index, s, &s->beam[i], n);
    walked = (uint32_t)n;
    for (uint32_t level = nodedb_vamana__level(a, slot); level > 0; level--) {
        nodedb_vamana__walk_level(s, by_code ? &code : &target, s->beam_max < NODEDB_VAMANA__LEVEL_BEAM
                                      ? s->beam_max : NODEDB_VAMANA__LEVEL_BEAM, level);
        for (uint32_t i = 0; i < s->beam_count; i++) n = nodedb_vamana__add_candidate(index, s, &s->beam[i], n);
    }
    had = by_code ? 0 : n;
    n = nodedb_vamana__row_as_candidates(index, s, slot, n);
    if (n == 0 && a->entry != NODEDB_VAMANA__NONE) /* the walk met removed nodes only */
        s->candidates[n].slot = a->entry, s->candidates[n++].mark = 0;
    nodedb_vamana__measure_candidates(index, s, slot, had, n);
    if (by_code && watched != NULL)
        nodedb_vamana__watch_codes(watched, slot, s->candidates, walked);
    return nodedb_vamana__prune(index, s, slot, n, index->degree);
}

/* ---- the tree ---------------------------------------------------------------------------------------------------- */

/* Pruning keeps the edges that are good to walk on. It does not keep every node reachable: a vector that is nobody's
 * neighbour is lost. So each live node except the entry has a parent. The parent's row always holds the node, and the
 * parents of parents lead up to the entry, so edges lead down from the entry to every live node. A node has few
 * children, so that they take little of its row. A removed node leaves the tree at once, and its children get other
 * parents. */

#define NODEDB_VAMANA__CHILDREN_SHARE 8u  /* 1/8 of a row is for children ... */
#define NODEDB_VAMANA__CHILDREN_MIN 2u    /* ... and at least so many places: see find_room */
#define NODEDB_VAMANA__CLIMB_MAX 256u     /* steps towards the entry before a parent is refused */

/* How many more children a node may have. */
static uint32_t nodedb_vamana__room(const nodedb_vamana *index, const nodedb_vamana__arrays *a, uint32_t slot) {
    const uint32_t *row = nodedb_vamana__row(index, a, slot);
    uint32_t most = index->degree / NODEDB_VAMANA__CHILDREN_SHARE, count = 0;
    if (most < NODEDB_VAMANA__CHILDREN_MIN) most = NODEDB_VAMANA__CHILDREN_MIN;
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++)
        count += nodedb_vamana__is_child(a, slot, row[i]);
    return count < most ? most - count : 0;
}

static bool nodedb_vamana__has_room(const nodedb_vamana *index, const nodedb_vamana__arrays *a, uint32_t slot) {
    return nodedb_vamana__room(index, a, slot) > 0;
}

/* True if `slot` is in the tree and not below `below`. False also if it is CLIMB_MAX steps or more from the entry. */
static bool nodedb_vamana__is_in_tree(const nodedb_vamana__arrays *a, uint32_t slot, uint32_t below) {
    for (uint32_t i = 0; i < NODEDB_VAMANA__CLIMB_MAX && slot != below && slot != NODEDB_VAMANA__NONE; i++) {
        if (slot == a->entry) return true;
        slot = a->parents[slot];
    }
    return false;
}

/* Returns a node with room for one more child: `from`, or one below it. The descent ends, as only nodes with children
 * are full. It is random, so that the tree stays shallow. */
static uint32_t nodedb_vamana__find_room(const nodedb_vamana *index, const nodedb_vamana__arrays *a, uint32_t from,
                                         uint64_t chance) {
    while (!nodedb_vamana__has_room(index, a, from)) {
        const uint32_t *row = nodedb_vamana__row(index, a, from);
        uint32_t next = NODEDB_VAMANA__NONE, count = 0;
        for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++)
            if (nodedb_vamana__is_child(a, from, row[i]) && (chance = nodedb_mix64(chance)) % ++count == 0)
                next = row[i];
        assert(next != NODEDB_VAMANA__NONE);
        from = next;
    }
    return from;
}

static void nodedb_vamana__set_parent(const nodedb_vamana *index, uint32_t slot, uint32_t parent) {
    nodedb_vamana__before_change(index, slot);
    nodedb__store_relaxed(&index->arrays->parents[slot], parent);
}

/* Returns a parent for a node without children: the nearest in `row` that has room, or NONE. */
static uint32_t nodedb_vamana__first_parent(const nodedb_vamana *index, const uint32_t *row, uint32_t count) {
    const nodedb_vamana__arrays *a = index->arrays;
    for (uint32_t i = 0; i < count; i++)
        if (nodedb_vamana__has_room(index, a, row[i])) return row[i];
    return NODEDB_VAMANA__NONE;
}

/* Gives a node a parent; this never fails. The node has a row, and may have nodes below it. */
static void nodedb_vamana__find_parent(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot) {
    const nodedb_vamana__arrays *a = index->arrays;
    const uint32_t *row = nodedb_vamana__row(index, a, slot);
    uint32_t parent = NODEDB_VAMANA__NONE, j;
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE && parent == NODEDB_VAMANA__NONE; i++) {
        const uint32_t *back = nodedb_vamana__row(index, a, row[i]); /* best a neighbour that has the edge already */
        for (j = 0; j < index->degree && back[j] != NODEDB_VAMANA__NONE && back[j] != slot; j++) {
        }
        if (j < index->degree && back[j] == slot && a->states[row[i]] == NODEDB_VAMANA__LIVE &&
            nodedb_vamana__has_room(index, a, row[i]) && nodedb_vamana__is_in_tree(a, row[i], slot))
            parent = row[i];
    }
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE && parent == NODEDB_VAMANA__NONE; i++)
        if (a->states[row[i]] == NODEDB_VAMANA__LIVE && nodedb_vamana__has_room(index, a, row[i]) &&
            nodedb_vamana__is_in_tree(a, row[i], slot))
            parent = row[i];
    if (parent == NODEDB_VAMANA__NONE) parent = nodedb_vamana__find_room(index, a, a->entry, slot);
    nodedb_vamana__set_parent(index, slot, parent);
    nodedb_vamana__add_edge(index, s, parent, slot);
}

/* Takes a removed node out of the tree. If it was the entry, a child becomes the entry. Until each child has its new
 * parent, a search that runs meanwhile may miss what is below that child. */
static void nodedb_vamana__leave_tree(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot) {
    nodedb_vamana__arrays *a = index->arrays;
    const uint32_t *row = nodedb_vamana__row(index, a, slot);
    nodedb_vamana__set_parent(index, slot, NODEDB_VAMANA__NONE); /* the nodes below are out of the tree for now */
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++) {
        if (!nodedb_vamana__is_child(a, slot, row[i])) continue;
        nodedb_vamana__set_parent(index, row[i], NODEDB_VAMANA__NONE);
        if (a->entry == slot) nodedb__store_release(&a->entry, row[i]);
        else nodedb_vamana__find_parent(index, s, row[i]);
    }
    assert(a->entry != slot);
}

/* ===================================================================================================================
 * CHANGES: insert, remove, and the sweep
 *
 * A new node gets its row before it is live, then the edges back. A removed node keeps leading searches: its slot
 * cannot be free while any row holds it. The sweep repairs those rows. It visits every node; one that points to removed
 * nodes gets, for each, the nearest few of the removed node's own neighbours. (Xu et al., IP-DiskANN, 2025, repair
 * likewise, but only the in-neighbours that a search happens to meet. The sweep meets all.)
 *
 *   slot      FREE --insert--> LIVE --remove--> REMOVED --sweep--> FREE
 *   sweep     IDLE -> REPAIRING every node -> WAITING for readers -> FREEING the removed slots -> IDLE
 * ================================================================================================================ */

#define NODEDB_VAMANA__REPLACEMENTS 3u        /* edges that replace one to a removed node; IP-DiskANN's c */
#define NODEDB_VAMANA__REMOVED_SHARE 32u      /* a sweep begins when 1/32 of the slots are removed ... */
#define NODEDB_VAMANA__REMOVED_MIN 32u        /* ... and at least so many slots */
#define NODEDB_VAMANA__SWEEP_PER_REMOVE 48u   /* nodes that a remove visits: of n slots, a sweep takes n / 48 removes */
#define NODEDB_VAMANA__FREE_PER_NODE 64u      /* slots visited in the second pass for the budget of one node */

/* ---- readers and the writer -------------------------------------------------------------------------------------- */

/* The writer alone changes the index. Readers take no lock: they count themselves in and out, and what the writer
 * replaces is freed after the last reader that may use it has left. */

/* Counts the caller in as a reader and returns the arrays that it may use until `leave`. If the epoch advanced between
 * the load and the count, the writer may have missed the count: try again. Once a count stands under an epoch that has
 * not advanced since, the writer's next load sees the count (both sides store, then load, in one total order). */
static const nodedb_vamana__arrays *nodedb_vamana__enter(const nodedb_vamana *index, uint32_t stripe,
                                                         uint32_t *parity) {
    nodedb_vamana__readers *r = index->readers;
    for (;;) {
        uint32_t epoch = __atomic_load_n(&r->epoch, __ATOMIC_SEQ_CST);
        *parity = epoch & 1;
        (void)__atomic_fetch_add(&r->pins[stripe].count[*parity], 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&r->epoch, __ATOMIC_SEQ_CST) == epoch) break;
        (void)__atomic_fetch_sub(&r->pins[stripe].count[*parity], 1, __ATOMIC_RELEASE);
    }
    return nodedb__load_acquire(&index->arrays);
}

static void nodedb_vamana__leave(const nodedb_vamana *index, uint32_t stripe, uint32_t parity) {
    (void)__atomic_fetch_sub(&index->readers->pins[stripe].count[parity], 1, __ATOMIC_RELEASE);
}

/* True if every reader that began before the epoch last advanced has left. */
static bool nodedb_vamana__readers_left(const nodedb_vamana *index) {
    const nodedb_vamana__readers *r = index->readers;
    uint32_t before = (r->epoch & 1) ^ 1;
    for (uint32_t i = 0; i < NODEDB_VAMANA__STRIPES; i++)
        if (__atomic_load_n(&r->pins[i].count[before], __ATOMIC_SEQ_CST) != 0) return false;
    return true;
}

/* Advances the epoch: readers_left is true once all present readers have left. Readers of the epoch before must have
 * left first, as new readers take their counters. */
static void nodedb_vamana__advance_epoch(nodedb_vamana *index) {
    while (!nodedb_vamana__readers_left(index)) (void)sched_yield();
    __atomic_store_n(&index->readers->epoch, index->readers->epoch + 1, __ATOMIC_SEQ_CST);
}

/* Returns when no reader can hold what was unlinked before the call. */
static void nodedb_vamana__await_readers(nodedb_vamana *index) {
    nodedb_vamana__advance_epoch(index);
    while (!nodedb_vamana__readers_left(index)) (void)sched_yield();
}

/* ---- ids --------------------------------------------------------------------------------------------------------- */

static size_t nodedb_vamana__table_size_for(uint64_t capacity) { /* 0: too large for this machine */
    uint64_t size = 16;
    while (size < capacity + capacity / 2) size *= 2;
    return size > SIZE_MAX / sizeof(uint32_t) ? 0 : (size_t)size;
}

/* The place of `id` in the table, or the empty place where it belongs. */
static size_t nodedb_vamana__table_place(const nodedb_vamana__arrays *a, uint64_t id) {
    size_t mask = a->table_size - 1, at = (size_t)nodedb_mix64(id) & mask;
    uint32_t slot;
    while ((slot = nodedb__load_acquire(&a->table[at])) != NODEDB_VAMANA__NONE && a->ids[slot] != id)
        at = (at + 1) & mask;
    return at;
}

/* The slot of an id, or NONE. A reader tries again if entries moved meanwhile, or if another id took the empty place
 * that it found. The writer never has to. */
static uint32_t nodedb_vamana__find(const nodedb_vamana__arrays *a, uint64_t id) {
    for (;;) {
        uint32_t version = nodedb__load_acquire(&a->table_version), slot;
        if (version % 2 == 0) {
            slot = nodedb__load_acquire(&a->table[nodedb_vamana__table_place(a, id)]);
            if (nodedb__load_acquire(&a->table_version) == version &&
                (slot == NODEDB_VAMANA__NONE || a->ids[slot] == id))
                return slot;
        }
        (void)sched_yield();
    }
}

/* False: the table has the id already. */
static bool nodedb_vamana__table_add(nodedb_vamana__arrays *a, uint32_t slot) {
    size_t at = nodedb_vamana__table_place(a, a->ids[slot]);
    if (a->table[at] != NODEDB_VAMANA__NONE) return false;
    nodedb__store_release(&a->table[at], slot);
    return true;
}

/* Removes an entry and closes the gap, so that no probe ends early: an entry behind the gap moves into it unless its
 * home lies between them. */
static void nodedb_vamana__table_drop(nodedb_vamana__arrays *a, uint32_t slot) {
    size_t mask = a->table_size - 1, gap = nodedb_vamana__table_place(a, a->ids[slot]), at = gap;
    assert(a->table[gap] == slot);
    nodedb__store_release(&a->table_version, a->table_version + 1);
    for (;;) {
        size_t home;
        at = (at + 1) & mask;
        if (a->table[at] == NODEDB_VAMANA__NONE) break;
        home = (size_t)nodedb_mix64(a->ids[a->table[at]]) & mask;
        if (((at - home) & mask) >= ((at - gap) & mask)) {
            nodedb__store_release(&a->table[gap], a->table[at]);
            gap = at;
        }
    }
    nodedb__store_release(&a->table[gap], NODEDB_VAMANA__NONE);
    nodedb__store_release(&a->table_version, a->table_version + 1);
}

static nodedb_status nodedb_vamana__no_such_id(uint64_t id, nodedb_error *err) {
    return nodedb_fail(err, NODEDB_ERR_NOT_FOUND, 0, "there is no vector with id %llu", (unsigned long long)id);
}

/* ---- slots ------------------------------------------------------------------------------------------------------- */

static uint32_t nodedb_vamana__alloc_slot(nodedb_vamana *index) {
    nodedb_vamana__arrays *a = index->arrays;
    uint32_t slot = index->first_free;
    if (slot != NODEDB_VAMANA__NONE) {
        nodedb_vamana__before_change(index, slot);
        index->first_free = nodedb_vamana__row(index, a, slot)[0];
        nodedb__store_release(&nodedb_vamana__row(index, a, slot)[0], NODEDB_VAMANA__NONE);
    } else {
        slot = a->slots;
        nodedb__store_release(&a->slots, slot + 1);
    }
    assert(slot < a->capacity && a->states[slot] == NODEDB_VAMANA__FREE);
    return slot;
}

/* No reader and no row may hold the slot any more. */
static void nodedb_vamana__free_slot(nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__before_change(index, slot);
    nodedb_vamana__set_state(a, slot, NODEDB_VAMANA__FREE);
    nodedb_vamana__clear_row(index, a, slot);
    nodedb__store_release(&nodedb_vamana__row(index, a, slot)[0], index->first_free);
    index->first_free = slot;
}

static void nodedb_vamana__count_live(nodedb_vamana *index, uint32_t live, uint32_t removed) {
    nodedb__store_relaxed(&index->live, live);
    nodedb__store_relaxed(&index->removed, removed);
}

/* ---- insert ------------------------------------------------------------------------------------------------------ */

/* Chooses the neighbours of a new node, and adds the edges back. The first node has none. */
static void nodedb_vamana__link(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot) {
    nodedb_vamana__arrays *a = index->arrays;
    const uint32_t *row = nodedb_vamana__row(index, a, slot);
    uint32_t count;
    if (a->entry == NODEDB_VAMANA__NONE) return;
    count = nodedb_vamana__choose_neighbours(index, s, slot, index);
    nodedb_vamana__count_beam(index, s), nodedb_vamana__adapt_beam(index);
    nodedb_vamana__set_row(index, a, slot, s->chosen, count, s->head);
    /* First the parent, then the edges back: a pruning of the parent's row must see that this node is a child of it,
     * or it may drop the only edge that is certain to lead here. */
    nodedb_vamana__set_parent(index, slot, nodedb_vamana__first_parent(index, row, count));
    for (uint32_t i = 0; i < count; i++) nodedb_vamana__add_edge(index, s, row[i], slot);
    if (a->parents[slot] == NODEDB_VAMANA__NONE) nodedb_vamana__find_parent(index, s, slot);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_insert(nodedb_vamana *index, uint64_t id, const void *vector,
                                                     nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    nodedb_vamana_searcher *s;
    nodedb_vamana__arrays *a;
    uint32_t slot, old;
    float norm;
    if (status != NODEDB_OK) return status;
    if (vector == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "vector is NULL");
    s = index->writer;
    status = nodedb_vamana__prepare(index, vector, s->query, &norm, -1, err);
    if (status == NODEDB_OK) status = nodedb_vamana__make_room(index, 1, err);
    if (status != NODEDB_OK) return status;

    old = nodedb_vamana__find(index->arrays, id);
    if (old != NODEDB_VAMANA__NONE && index->live == 1) { /* with the last vector all slots go */
        nodedb_vamana__remove_slot(index, old);
        old = NODEDB_VAMANA__NONE;
    }
    a = index->arrays;
    slot = nodedb_vamana__alloc_slot(index);
    memcpy(nodedb_vamana__vector(index, a, slot), s->query, index->stride);
    if (a->norms != NULL) a->norms[slot] = norm;
    nodedb_vamana__note_zeros(index, a, norm);
    a->ids[slot] = id, a->heads[slot].level = nodedb_vamana__level_of(index, id);
    nodedb_vamana__encode_new(index, s->turned, slot);
    if (old != NODEDB_VAMANA__NONE) nodedb_vamana__remove_slot(index, old);
    nodedb_vamana__link(index, s, slot);
    nodedb_vamana__set_state(a, slot, NODEDB_VAMANA__LIVE);
    if (a->entry == NODEDB_VAMANA__NONE) nodedb__store_release(&a->entry, slot);
    nodedb_vamana__count_live(index, index->live + 1, index->removed);
    nodedb_vamana__count_inserted(index, 1);
    if (!nodedb_vamana__table_add(a, slot)) assert(false);
    nodedb_vamana__offer_start(a, slot);
    (void)nodedb_vamana__make_codes(index, NODEDB_VAMANA__CODE_PER_CHANGE);
    return NODEDB_OK;
}

/* ---- the sweep --------------------------------------------------------------------------------------------------- */

/* True if the sweep under way frees this slot, which was removed before that sweep began: see colours, at the states of
 * a slot. */
static bool nodedb_vamana__is_victim(const nodedb_vamana *index, uint32_t slot) {
    uint8_t state = index->arrays->states[slot];
    return state >= NODEDB_VAMANA__REMOVED && state != index->colour;
}

/* Adds the nearest few of a removed node's neighbours to the `n` candidates of `slot`. For an edge of a level: the
 * first few of that level in the removed node's row, which are near to that node, so that an edge to another cluster is
 * replaced by edges to the same cluster. Returns the new number of candidates. */
static size_t nodedb_vamana__add_replacements(nodedb_vamana *index, nodedb_vamana_searcher *s, uint32_t slot,
                                              uint32_t removed, uint32_t level, size_t n) {
    const nodedb_vamana__arrays *a = index->arrays;
    const uint32_t *row = nodedb_vamana__row(index, a, removed);
    nodedb_vamana__target target = nodedb_vamana__slot_target(index, a, slot);
    nodedb_vamana__near best[NODEDB_VAMANA__REPLACEMENTS];
    uint32_t count = 0, found = 0;
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++) {
        bool known = row[i] == slot || a->states[row[i]] != NODEDB_VAMANA__LIVE ||
                     (level > 0 && nodedb_vamana__level(a, row[i]) < level);
        for (size_t j = 0; j < n && !known; j++) known = s->candidates[j].slot == row[i];
        if (!known) s->slots[count++] = row[i];
    }
    nodedb_vamana__measure_many(index, &target, s->slots, count, s->distances);
    s->computed += count;
    if (level > 0 && count > NODEDB_VAMANA__REPLACEMENTS) count = NODEDB_VAMANA__REPLACEMENTS;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = found;
        while (at > 0 && best[at - 1].distance > s->distances[i]) at--;
        if (at == NODEDB_VAMANA__REPLACEMENTS) continue;
        if (found < NODEDB_VAMANA__REPLACEMENTS) found++;
        memmove(&best[at + 1], &best[at], (found - 1 - at) * sizeof best[0]);
        best[at].distance = s->distances[i], best[at].slot = s->slots[i], best[at].mark = 0;
    }
    for (uint32_t i = 0; i < found && n < s->candidates_max; i++) s->candidates[n++] = best[i];
    return n;
}

/* Repairs a row: replaces its edges to removed nodes. An edge between two nodes of a level is replaced by edges of that
 * level too. */
static void nodedb_vamana__repair(nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana_searcher *s = index->writer;
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t *row = nodedb_vamana__row(index, a, slot), i, count, level = nodedb_vamana__level(a, slot);
    size_t n = 0, had = nodedb_vamana__row_as_candidates(index, s, slot, 0);
    memset(&s->head, 0, sizeof s->head);
    for (i = 0, count = (uint32_t)had; i < count; i++) {
        if (nodedb_vamana__is_victim(index, row[i])) continue;
        s->candidates[n] = s->candidates[i];
        s->head.strict = (uint8_t)(s->head.strict + ((s->candidates[n].mark & NODEDB_VAMANA__STRICT) != 0));
        s->head.pruned = (uint8_t)(s->head.pruned + ((s->candidates[n].mark & NODEDB_VAMANA__PASSED) != 0));
        s->head.far = (uint8_t)(s->head.far + ((s->candidates[n++].mark & NODEDB_VAMANA__FAR) != 0));
    }
    if (n == had) return;
    for (i = 0; i < count; i++) {
        uint32_t other;
        if (!nodedb_vamana__is_victim(index, row[i])) continue;
        n = nodedb_vamana__add_replacements(index, s, slot, row[i], 0, n);
        other = level > 0 ? nodedb_vamana__level(a, row[i]) : 0;
        if (other > 0)
            n = nodedb_vamana__add_replacements(index, s, slot, row[i], other < level ? other : level, n);
    }
    if (n == 0 && a->entry != NODEDB_VAMANA__NONE && a->entry != slot) /* any edge is better than none */
        s->candidates[n++].slot = a->entry;
    if (n <= index->degree && level == 0) { /* the order stays, so the head stays true */
        for (i = 0; i < n; i++) s->chosen[i] = s->candidates[i].slot;
    } else {
        nodedb_vamana__measure_candidates(index, s, slot, 0, n);
        n = nodedb_vamana__prune(index, s, slot, n, index->degree);
    }
    nodedb_vamana__set_row(index, a, slot, s->chosen, (uint32_t)n, s->head);
}

/* IP: a long vector occludes many others in the rows that hold it, and is then the only one that leads to them. Before
 * it goes, each of its neighbours gets an edge from the best of the others. */
static void nodedb_vamana__bridge(nodedb_vamana *index, uint32_t removed) {
    nodedb_vamana_searcher *s = index->writer;
    const nodedb_vamana__arrays *a = index->arrays;
    const uint32_t *row = nodedb_vamana__row(index, a, removed);
    uint32_t j, count;
    for (uint32_t i = 0; i < index->degree && row[i] != NODEDB_VAMANA__NONE; i++) {
        nodedb_vamana__target target = nodedb_vamana__slot_target(index, a, row[i]);
        uint32_t best = 0;
        if (a->states[row[i]] != NODEDB_VAMANA__LIVE) continue;
        for (j = 0, count = 0; j < index->degree && row[j] != NODEDB_VAMANA__NONE; j++)
            if (j != i && a->states[row[j]] == NODEDB_VAMANA__LIVE) s->slots[count++] = row[j];
        if (count == 0) return;
        nodedb_vamana__measure_many(index, &target, s->slots, count, s->distances);
        s->computed += count;
        for (j = 1; j < count; j++)
            if (s->distances[j] < s->distances[best]) best = j;
        nodedb_vamana__add_edge(index, s, s->slots[best], row[i]);
    }
}

/* One step of the sweep: repairs one row, or frees up to FREE_PER_NODE slots. */
static void nodedb_vamana__sweep_step(nodedb_vamana *index) {
    const nodedb_vamana__arrays *a = index->arrays;
    if (index->sweep == NODEDB_VAMANA__REPAIRING) {
        uint8_t state = index->sweep_at < a->slots ? a->states[index->sweep_at] : 0;
        if (state == NODEDB_VAMANA__LIVE || state == index->colour) nodedb_vamana__repair(index, index->sweep_at);
        else if (state >= NODEDB_VAMANA__REMOVED && index->metric == NODEDB_VAMANA_IP)
            nodedb_vamana__bridge(index, index->sweep_at);
        if (++index->sweep_at < a->slots) return;
        index->sweep = NODEDB_VAMANA__WAITING; /* no row holds a removed slot, but a reader may */
        nodedb_vamana__advance_epoch(index);
    }
    if (index->sweep == NODEDB_VAMANA__WAITING) {
        if (!nodedb_vamana__readers_left(index)) return;
        index->sweep = NODEDB_VAMANA__FREEING, index->sweep_at = 0;
        return;
    }
    assert(index->sweep == NODEDB_VAMANA__FREEING);
    for (uint32_t i = 0; i < NODEDB_VAMANA__FREE_PER_NODE && index->sweep_at < a->slots; i++, index->sweep_at++) {
        if (!nodedb_vamana__is_victim(index, index->sweep_at)) continue;
        nodedb_vamana__free_slot(index, index->sweep_at);
        assert(index->removed > 0);
        nodedb_vamana__count_live(index, index->live, index->removed - 1);
    }
    if (index->sweep_at >= a->slots) index->sweep = NODEDB_VAMANA__IDLE;
}

static void nodedb_vamana__sweep_begin(nodedb_vamana *index) {
    assert(index->sweep == NODEDB_VAMANA__IDLE);
    index->colour = index->colour == NODEDB_VAMANA__REMOVED ? NODEDB_VAMANA__REMOVED + 1 : NODEDB_VAMANA__REMOVED;
    index->sweep = NODEDB_VAMANA__REPAIRING;
    index->sweep_at = 0;
}

/* ---- remove ------------------------------------------------------------------------------------------------------ */

/* After the last vector was removed: empties the index, once no reader can hold a slot. */
static void nodedb_vamana__reset(nodedb_vamana *index) {
    nodedb_vamana__arrays *a;
    uint32_t slots;
    for (uint32_t slot = 0; slot < index->arrays->slots && index->save != NULL; slot++)
        nodedb_vamana__before_change(index, slot);
    if (index->arrays->codes != NULL) (void)nodedb_vamana__replace_codes(index, NULL, NULL);
    a = index->arrays, slots = a->slots;
    assert(index->live == 0);
    nodedb_vamana__drop_recoding(index);
    nodedb__store_release(&a->entry, NODEDB_VAMANA__NONE);
    for (uint32_t slot = 0; slot < NODEDB_VAMANA__STARTS_MAX; slot++)
        nodedb__store_release(&a->starts[slot], NODEDB_VAMANA__NONE);
    nodedb_vamana__await_readers(index);
    nodedb__store_release(&a->slots, 0);
    a->zeros = false;
    for (uint32_t slot = 0; slot < slots; slot++) {
        nodedb_vamana__set_state(a, slot, NODEDB_VAMANA__FREE);
        nodedb_vamana__clear_row(index, a, slot);
        a->parents[slot] = NODEDB_VAMANA__NONE;
    }
    nodedb_vamana__count_live(index, 0, 0);
    index->first_free = NODEDB_VAMANA__NONE, index->sweep = NODEDB_VAMANA__IDLE;
    nodedb__store_relaxed(&index->beam_now, index->beam_build), index->beam_asked = index->beam_missed = 0;
    nodedb_vamana__codes_made(index, 0, 0);
}

static void nodedb_vamana__remove_slot(nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana__arrays *a = index->arrays;
    uint32_t removed_max = a->slots / NODEDB_VAMANA__REMOVED_SHARE, i;
    nodedb_vamana__before_change(index, slot);
    nodedb_vamana__table_drop(a, slot);
    nodedb_vamana__set_state(a, slot, index->colour);
    nodedb_vamana__count_live(index, index->live - 1, index->removed + 1);
    if (index->live == 0) {
        nodedb_vamana__reset(index);
        return;
    }
    nodedb_vamana__replace_start(index, a, slot);
    nodedb_vamana__leave_tree(index, index->writer, slot);
    if (removed_max < NODEDB_VAMANA__REMOVED_MIN) removed_max = NODEDB_VAMANA__REMOVED_MIN;
    if (index->sweep == NODEDB_VAMANA__IDLE && index->removed >= removed_max) nodedb_vamana__sweep_begin(index);
    for (i = 0; i < NODEDB_VAMANA__SWEEP_PER_REMOVE && index->sweep != NODEDB_VAMANA__IDLE; i++)
        nodedb_vamana__sweep_step(index);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_remove(nodedb_vamana *index, uint64_t id, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    uint32_t slot;
    if (status != NODEDB_OK) return status;
    slot = nodedb_vamana__find(index->arrays, id);
    if (slot == NODEDB_VAMANA__NONE)
        return nodedb_vamana__no_such_id(id, err);
    nodedb_vamana__remove_slot(index, slot);
    return NODEDB_OK;
}

NODEDB_VAMANA_API bool nodedb_vamana_maintain(nodedb_vamana *index, uint64_t budget) {
    if (index == NULL || nodedb_vamana__is_on_disk(index)) return false;
    for (; budget > 0; budget--) {
        bool coding = nodedb_vamana__make_codes(index, NODEDB_VAMANA__CODE_PER_CHANGE);
        if (index->sweep == NODEDB_VAMANA__IDLE) {
            if (index->removed == 0 && !coding) return false;
            if (index->removed == 0) continue;
            nodedb_vamana__sweep_begin(index);
        }
        nodedb_vamana__sweep_step(index);
    }
    return index->sweep != NODEDB_VAMANA__IDLE || index->removed > 0 || index->recoder != NULL;
}

/* ===================================================================================================================
 * SEARCH: from a query to results
 *
 * A query becomes a plan: how wide a beam, on codes or vectors, or a scan. The walk fills the beam, entries that pass
 * the filter become results, and results by code are measured exactly (the rerank) until the query's own error says
 * that no other can be nearer.
 * ================================================================================================================ */

#define NODEDB_VAMANA__DEFAULT_K 10u
#define NODEDB_VAMANA__DEFAULT_BEAM 64u
#define NODEDB_VAMANA__DEFAULT_BATCH 128u      /* twice the default beam */
#define NODEDB_VAMANA__FILTER_SAMPLE 256u     /* vectors that estimate the share that passes a filter */
#define NODEDB_VAMANA__WIDE_PER_K 4u          /* so wide a beam for each k: if its end is uncertain, walk on vectors */
#define NODEDB_VAMANA__RERANK_MORE 8u         /* results that are added at a time while the k best are uncertain */
#define NODEDB_VAMANA__RERANK_FEW 4u          /* on disk results are measured so many at a time */
#define NODEDB_VAMANA__ERROR_IP 1.7           /* IP: times so many, as queries may differ in kind from vectors */
#define NODEDB_VAMANA__WIDEN_IP 192u          /* IP: a beam on codes is wider by 1/192 for each place of the slack */
#define NODEDB_VAMANA__ERROR_DEVIATIONS 2.7   /* standard deviations of the codes' error that a rerank allows for ... */
#define NODEDB_VAMANA__ERROR_DEVIATIONS_AGAIN 1.5 /* ... and that make it walk again on vectors, at a beam's end */
#define NODEDB_VAMANA__RANGE_FIRST 32u        /* results that a search by radius starts with */

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* True if `a` is a worse result than `b`; of equal distances the larger id is worse. */
static bool nodedb_vamana__heap_worse(const uint64_t *ids, const nodedb_vamana__near *a, const nodedb_vamana__near *b) {
    if (a->distance != b->distance) return a->distance > b->distance;
    return ids[a->slot] > ids[b->slot];
}

/* Moves `one` down from the head of a heap that has the worst result at its head. */
static void nodedb_vamana__sift_down(const uint64_t *ids, nodedb_vamana__near *heap, size_t n,
                                     nodedb_vamana__near one) {
    size_t at = 0, child;
    while ((child = 2 * at + 1) < n) {
        if (child + 1 < n && nodedb_vamana__heap_worse(ids, &heap[child + 1], &heap[child])) child++;
        if (!nodedb_vamana__heap_worse(ids, &heap[child], &one)) break;
        heap[at] = heap[child], at = child;
    }
    heap[at] = one;
}

/* Offers a result to a heap of at most `most`, which keeps the best. Returns its new size. */
static size_t nodedb_vamana__heap_offer(const uint64_t *ids, nodedb_vamana__near *heap, size_t n, size_t most,
                                        float distance, uint32_t slot) {
    nodedb_vamana__near one;
    size_t at, parent;
    one.distance = distance, one.slot = slot, one.mark = 0;
    if (n == most) {
        if (nodedb_vamana__heap_worse(ids, &heap[0], &one)) nodedb_vamana__sift_down(ids, heap, n, one);
        return n;
    }
    for (at = n; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!nodedb_vamana__heap_worse(ids, &one, &heap[parent])) break;
        heap[at] = heap[parent];
    }
    heap[at] = one;
    return n + 1;
}

/* Sorts a heap into a list with the best first. */
static void nodedb_vamana__sort_heap(const uint64_t *ids, nodedb_vamana__near *heap, size_t n) {
    while (n > 1) {
        nodedb_vamana__near last = heap[--n];
        heap[n] = heap[0];
        nodedb_vamana__sift_down(ids, heap, n, last);
    }
}

/* True if this slot may be a result: it is live, passes the filter, and its state and id are not damaged. */
static bool nodedb_vamana__passes(nodedb_vamana_searcher *s, const nodedb_vamana_query *query, uint32_t slot) {
    const nodedb_vamana__arrays *a = s->arrays;
    uint64_t id;
    if (!nodedb_vamana__have_state(s->index, slot, &s->read_errors) ||
        nodedb_vamana__state(a, slot) != NODEDB_VAMANA__LIVE)
        return false;
    id = a->ids[slot];
    if (query->bitmap != NULL && (id >= query->bitmap_bits || (query->bitmap[id / 8] >> id % 8 & 1) == 0)) return false;
    return query->filter == NULL || query->filter(query->filter_ctx, id);
}

/* Passes an error on to the caller; returns its status. */
static nodedb_status nodedb_vamana__pass_on(const nodedb_error *reason, nodedb_error *err) {
    if (err != NULL) *err = *reason;
    return reason->status;
}

/* The first failure of a query's reads, or NODEDB_OK. */
static nodedb_status nodedb_vamana__read_failure(const nodedb_vamana_searcher *s, nodedb_error *err) {
    if (s->read_errors.failed != NODEDB_OK && err != NULL) *err = s->read_errors.error;
    return s->read_errors.failed;
}

/* ---- filters ----------------------------------------------------------------------------------------------------- */

static bool nodedb_vamana__is_filtered(const nodedb_vamana_query *query) {
    return query->filter != NULL || query->bitmap != NULL;
}

/* Returns how wide a beam must be so that about `beam` of its entries pass the filter; 0: a scan is cheaper. A walk
 * costs about half a row of distances for each entry of its beam. A scan costs one distance for each vector that
 * passes, and about a quarter of one to ask the filter about each. */
static uint32_t nodedb_vamana__beam_behind_filter(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                  uint32_t beam) {
    const nodedb_vamana__arrays *a = s->arrays;
    uint64_t slots = nodedb__load_acquire(&a->slots);
    uint64_t n = slots < NODEDB_VAMANA__FILTER_SAMPLE ? slots : NODEDB_VAMANA__FILTER_SAMPLE;
    uint64_t live = 0, pass = 0, wide, all = nodedb__load_relaxed(&s->index->live);
    for (uint64_t i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)(i * slots / n);
        if (!nodedb_vamana__have_state(s->index, slot, &s->read_errors) ||
            nodedb_vamana__state(a, slot) != NODEDB_VAMANA__LIVE)
            continue;
        live++;
        pass += nodedb_vamana__passes(s, query, slot) ? 1 : 0;
    }
    if (pass == 0) return 0;
    wide = ((uint64_t)beam * live + pass - 1) / pass;
    if (wide > NODEDB_VAMANA_MAX_BEAM || wide * s->index->degree / 2 > all * pass / live + all / 4) return 0;
    return (uint32_t)wide;
}

/* Entries that a list of `wanted` results needs: no more than there are vectors, however large k is. */
static uint32_t nodedb_vamana__at_most_live(const nodedb_vamana *index, uint32_t wanted) {
    uint32_t live = nodedb__load_relaxed(&index->live);
    return wanted < live ? wanted : live > 0 ? live : 1;
}

/* ---- a plan ------------------------------------------------------------------------------------------------------ */

/* The way to the results. ON_CODES -> ON_VECTORS: the codes err too much for this query. Either -> BY_SCAN: a walk
 * found too few results. */
typedef enum nodedb_vamana__way {
    NODEDB_VAMANA__ON_CODES,   /* walk on codes, then rerank */
    NODEDB_VAMANA__ON_VECTORS, /* walk on the vectors */
    NODEDB_VAMANA__BY_SCAN     /* measure every vector */
} nodedb_vamana__way;

/* How one query is answered: its defaults filled in. Lives for one call. */
typedef struct nodedb_vamana__plan {
    uint32_t k, beam;
    uint32_t keep;   /* results before the rerank */
    uint64_t passing; /* vectors that may be results: with a filter an estimate */
    bool more;       /* rerank more of them while the k best are uncertain */
    bool in_doubt;   /* the k best by code are known, and what fell out of the beam may be nearer */
    nodedb_vamana__way way;
} nodedb_vamana__plan;

static nodedb_status nodedb_vamana__plan_query(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                               nodedb_vamana__plan *plan, nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    uint32_t live = nodedb__load_relaxed(&index->live), entries;
    memset(plan, 0, sizeof *plan);
    plan->k = query->k == 0 ? NODEDB_VAMANA__DEFAULT_K : query->k;
    plan->beam = query->beam == 0 ? NODEDB_VAMANA__DEFAULT_BEAM : query->beam;
    if (plan->beam < plan->k) plan->beam = plan->k;
    plan->way = nodedb_vamana__is_on_disk(index) || (s->arrays->codes != NULL && !query->exact_walk)
                    ? NODEDB_VAMANA__ON_CODES
                    : NODEDB_VAMANA__ON_VECTORS;
    plan->keep = plan->k, plan->passing = live;
    if (plan->way == NODEDB_VAMANA__ON_CODES) {
        uint64_t tens = ((uint64_t)plan->k + NODEDB_VAMANA__JUDGE_NEAREST - 1) / NODEDB_VAMANA__JUDGE_NEAREST;
        uint64_t slack = s->arrays->coder == NULL ? 0 : nodedb__load_relaxed(&s->arrays->coder->slack) * tens;
        uint64_t keep = plan->k + (slack > NODEDB_VAMANA__SLACK_LEAST ? slack : NODEDB_VAMANA__SLACK_LEAST);
        uint64_t least = plan->k + slack < NODEDB_VAMANA_MAX_BEAM ? plan->k + slack : NODEDB_VAMANA_MAX_BEAM;
        if (plan->beam < least) plan->beam = (uint32_t)least; /* or codes would push the nearest out of the beam */
        if (index->metric == NODEDB_VAMANA_IP) {
            uint64_t wide = plan->beam + plan->beam * slack / tens / NODEDB_VAMANA__WIDEN_IP;
            plan->beam = wide < NODEDB_VAMANA_MAX_BEAM ? (uint32_t)wide : NODEDB_VAMANA_MAX_BEAM;
        }
        plan->more = query->rerank == 0;
        if (query->rerank != 0) keep = query->rerank < plan->k ? plan->k : query->rerank;
        plan->keep = keep < plan->beam ? (uint32_t)keep : plan->beam;
    }
    if (plan->beam >= live) plan->way = NODEDB_VAMANA__BY_SCAN; /* it costs less than a walk, and is exact */
    else if (nodedb_vamana__is_filtered(query)) {
        uint32_t wide = nodedb_vamana__beam_behind_filter(s, query, plan->beam);
        if (wide == 0 || wide >= live) plan->way = NODEDB_VAMANA__BY_SCAN;
        else plan->beam = wide;
    }
    entries = plan->way == NODEDB_VAMANA__BY_SCAN ? nodedb_vamana__at_most_live(index, plan->k) : plan->beam;
    return nodedb_vamana__searcher_fit(s, entries, s->arrays->capacity, err);
}

/* ---- exact distances of results ---------------------------------------------------------------------------------- */

/* The difference between exact distances and those by code that a query has seen so far. */
typedef struct nodedb_vamana__code_error {
    nodedb_vamana__target code;
    double sum, squares; /* of the differences */
    uint32_t n;
    float exact, by_code; /* of the last */
} nodedb_vamana__code_error;

static void nodedb_vamana__note_code_error(nodedb_vamana__code_error *d, float exact, float by_code) {
    double difference = (double)exact - (double)d->code.constant * (double)by_code;
    if (d->n > 0 && exact == d->exact && by_code == d->by_code) return; /* a copy of the last adds nothing */
    d->exact = exact, d->by_code = by_code;
    d->sum += difference, d->squares += difference * difference, d->n++;
}

/* True if a vector of this distance by code, or any farther by code, may be nearer than `kth`, allowing for so many
 * standard deviations. Two estimates count: the errors that the query has seen, and what rounding does to a vector at
 * that distance. The second is needed because rounding favoured the vectors that are first by code, so their errors
 * say too little of the others. */
static bool nodedb_vamana__may_be_nearer(const nodedb_vamana *index, const nodedb_vamana__code_error *d,
                                         double deviations, float kth, const nodedb_vamana__near *one) {
    double by_code = (double)d->code.constant * (double)one->distance, mean, variance, length;
    if (d->n < NODEDB_VAMANA__SLACK_LEAST) return true;
    if (index->metric == NODEDB_VAMANA_IP) deviations *= NODEDB_VAMANA__ERROR_IP;
    mean = d->sum / d->n, variance = d->squares / d->n - mean * mean;
    if (by_code + mean - deviations * sqrt(variance > 0 ? variance : 0) <= (double)kth) return true;
    length = index->metric == NODEDB_VAMANA_IP       ? (double)d->code.arrays->norms[one->slot]
             : index->metric == NODEDB_VAMANA_COSINE ? 2 * (double)kth
                                                     : (double)kth;
    length = sqrt(length > 0 ? length : 0);
    return by_code + (double)d->code.offset - deviations * (double)d->code.spread * length <= (double)kth;
}

/* True if the end of the beam must be judged: something fell out of it. In a narrow beam doubt is common and harmless,
 * so there it counts only where no walk has judged the codes. */
static bool nodedb_vamana__may_end_in_doubt(const nodedb_vamana_searcher *s, const nodedb_vamana__plan *plan) {
    return plan->more && s->beam_count == plan->beam &&
           (plan->beam / NODEDB_VAMANA__WIDE_PER_K >= plan->k || !nodedb_vamana__codes_are_judged(s->index));
}

/* True if what fell out of a full beam may be nearer than the k best, as its last entry may be. */
static bool nodedb_vamana__ends_in_doubt(const nodedb_vamana_searcher *s, const nodedb_vamana__plan *plan,
                                         const nodedb_vamana__code_error *d, float kth) {
    return nodedb_vamana__may_end_in_doubt(s, plan) &&
           nodedb_vamana__may_be_nearer(s->index, d, NODEDB_VAMANA__ERROR_DEVIATIONS_AGAIN, kth,
                                        &s->beam[s->beam_count - 1]);
}

/* The distance that a search returns, from the prepared query in s->query. */
static nodedb_vamana__target nodedb_vamana__query_target(const nodedb_vamana_searcher *s, float norm) {
    return nodedb_vamana__exact_target(s->index, s->arrays, s->query, norm);
}

/* Measures results[from .. from + n) exactly and offers them to the heap of the best `most` at results[0 .. *heap). On
 * disk, damaged ones are skipped. */
static nodedb_status nodedb_vamana__measure_results(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                                    nodedb_vamana__near *results, size_t most, size_t from, size_t n,
                                                    size_t *heap, nodedb_vamana__code_error *code_error,
                                                    nodedb_error *err) {
    size_t to = from + n, batch, batch_max = s->candidates_max;
    nodedb_status status = NODEDB_OK;
    if (nodedb_vamana__is_on_disk(s->index)) batch_max = nodedb_vamana__min(batch_max, s->fetcher.batch_max);
    for (; from < to && status == NODEDB_OK; from += batch) {
        batch = nodedb_vamana__min(to - from, batch_max);
        for (size_t i = 0; i < batch; i++) s->slots[i] = results[from + i].slot;
        if (nodedb_vamana__is_on_disk(s->index)) {
            status = s->fetcher.prefetch_batch(s->fetcher.ctx, s->slots, batch, err);
            if (status == NODEDB_OK)
                status = nodedb_vamana__measure_fetched(s, exact, results, most, from, batch, heap, code_error, err);
            continue;
        }
        nodedb_vamana__measure_many(s->index, exact, s->slots, batch, s->distances);
        for (size_t i = 0; i < batch; i++) {
            if (code_error != NULL) nodedb_vamana__note_code_error(code_error, s->distances[i],
                                                                   results[from + i].distance);
            *heap = nodedb_vamana__heap_offer(s->arrays->ids, results, *heap, most, s->distances[i], s->slots[i]);
        }
    }
    return status;
}

/* Scans every vector: leaves the best `most` that pass, by exact distance, as a heap in s->spare. */
static nodedb_status nodedb_vamana__scan_all(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                             const nodedb_vamana_query *query, size_t most, size_t *found,
                                             nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    const nodedb_vamana__arrays *a = s->arrays;
    uint32_t slots = nodedb__load_acquire(&a->slots);
    nodedb_vamana__near *chunk = s->candidates;
    nodedb_status status = NODEDB_OK;
    size_t n = 0, count = 0;
    if (most > s->list_max) most = s->list_max; /* the index may have grown since the lists were sized */
    for (uint32_t slot = 0; slot < slots && status == NODEDB_OK; slot++) {
        if (nodedb_vamana__passes(s, query, slot)) s->slots[count] = slot, chunk[count++].slot = slot;
        if (count < NODEDB_VAMANA__SCAN_CHUNK && slot + 1 < slots) continue;
        s->computed += count, s->exact += count;
        if (nodedb_vamana__is_on_disk(index)) {
            size_t heap = 0;
            status = nodedb_vamana__measure_results(s, exact, chunk, count, 0, count, &heap, NULL, err);
            count = heap;
        } else {
            nodedb_vamana__measure_many(index, exact, s->slots, count, s->distances);
            for (size_t i = 0; i < count; i++) chunk[i].distance = s->distances[i];
        }
        for (size_t i = 0; i < count && status == NODEDB_OK; i++)
            n = nodedb_vamana__heap_offer(a->ids, s->spare, n, most, chunk[i].distance, chunk[i].slot);
        count = 0;
    }
    *found = n;
    return status;
}

/* Leaves the best `most` entries of the beam that pass as a heap in s->spare; returns how many. */
static size_t nodedb_vamana__collect(nodedb_vamana_searcher *s, const nodedb_vamana_query *query, size_t most) {
    const uint64_t *ids = s->arrays->ids;
    size_t n = 0;
    for (uint32_t i = 0; i < s->beam_count; i++) {
        if (n == most && s->beam[i].distance > s->spare[0].distance) break;
        if (nodedb_vamana__passes(s, query, s->beam[i].slot))
            n = nodedb_vamana__heap_offer(ids, s->spare, n, most, s->beam[i].distance, s->beam[i].slot);
    }
    return n;
}

/* Appends the next entries of the beam that pass, from s->collected on, to the `n` in s->spare until there are
 * `most`. */
static size_t nodedb_vamana__collect_codes(nodedb_vamana_searcher *s, const nodedb_vamana_query *query, size_t n,
                                           size_t most) {
    for (; s->collected < s->beam_count && n < most; s->collected++)
        if (nodedb_vamana__passes(s, query, s->beam[s->collected].slot)) s->spare[n++] = s->beam[s->collected];
    return n;
}

/* Measures the *n results by code in s->spare exactly, the nearest first. If the plan says so, goes on with more of the
 * beam while one may be nearer than the k best, judged by the errors that this query has seen. On disk it decides this
 * while the last reads are under way. Afterwards *n results are a heap of the k best, and plan->in_doubt is set. */
static nodedb_status nodedb_vamana__rerank(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                           nodedb_vamana__plan *plan, const nodedb_vamana__target *exact,
                                           const nodedb_vamana__target *code, size_t *n, nodedb_error *err) {
    bool on_disk = nodedb_vamana__is_on_disk(s->index);
    nodedb_vamana__code_error code_error;
    nodedb_status status = NODEDB_OK;
    size_t from = 0, heap = 0, told = 0, few, next = *n; /* next: results collected, one to judge by */
    memset(&code_error, 0, sizeof code_error);
    code_error.code = *code;
    /* s->spare   0 ....... heap ........ from ........ told ......... *n ......... next
     *            the k best   measured      announced     to be          at most one more,
     *            so far       and dropped                 announced      to judge by
     * heap <= from <= *n <= next <= *n + 1. On disk also from <= told <= *n; in memory `told` stays 0. One turn
     * measures `few` results from `from` on: on disk at most RERANK_FEW, in memory all up to *n. */
    while (from < *n && status == NODEDB_OK) {
        few = *n - from;
        if (on_disk)
            status = nodedb_vamana__measure_few(s, exact, plan->k, from, *n, &told, &few, &heap, &code_error, err);
        else status = nodedb_vamana__measure_results(s, exact, s->spare, plan->k, from, few, &heap, &code_error, err);
        s->computed += few, s->exact += few, from += few;
        if (!plan->more || heap < plan->k || code_error.n == 0 || *n - from > NODEDB_VAMANA__RERANK_MORE) continue;
        if (next == *n) next = nodedb_vamana__collect_codes(s, query, next, next + 1);
        if (next == *n)
            plan->in_doubt = nodedb_vamana__ends_in_doubt(s, plan, &code_error, s->spare[0].distance);
        else if (nodedb_vamana__may_be_nearer(s->index, &code_error, NODEDB_VAMANA__ERROR_DEVIATIONS,
                                              s->spare[0].distance, &s->spare[*n]))
            *n = next = nodedb_vamana__collect_codes(s, query, next, *n + NODEDB_VAMANA__RERANK_MORE);
    }
    *n = heap;
    return status;
}

/* ---- one query --------------------------------------------------------------------------------------------------- */

/* Too few results: double the beam (false), or scan every vector (true). */
static bool nodedb_vamana__widen_or_scan(const nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                         nodedb_vamana__plan *plan) {
    if (nodedb_vamana__is_filtered(query) || plan->beam > NODEDB_VAMANA_MAX_BEAM / 2 ||
        (uint64_t)plan->beam * s->index->degree >= nodedb__load_relaxed(&s->index->live)) {
        plan->way = NODEDB_VAMANA__BY_SCAN;
        return true;
    }
    plan->beam *= 2;
    return false;
}

/* Either walks and leaves at least k results that pass in s->spare, in order by code or else as a heap; or sets
 * plan->way to BY_SCAN, as too few pass. It walks again with twice the beam if removed or damaged slots took the places
 * of results. *code: the target by code. */
static nodedb_status nodedb_vamana__walk_to_results(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                    nodedb_vamana__plan *plan, float norm, size_t *found,
                                                    nodedb_vamana__target *code, nodedb_error *err) {
    for (;;) {
        nodedb_status status = NODEDB_OK;
        uint64_t computed = s->computed;
        s->collected = 0;
        if (nodedb_vamana__is_packed(s->index) && plan->way == NODEDB_VAMANA__ON_CODES) {
            status = nodedb_vamana__walk_packed(s, query, plan, norm, found, err);
        } else {
            bool by_code = plan->way == NODEDB_VAMANA__ON_CODES;
            nodedb_vamana__target target = by_code ? nodedb_vamana__code_target(s, s->query, norm)
                                                   : nodedb_vamana__query_target(s, norm);
            if (nodedb_vamana__is_on_disk(s->index) && !by_code) nodedb_vamana__walk_read(s, &target, plan->beam);
            else nodedb_vamana__walk(s, &target, plan->beam);
            if (!by_code) s->exact += s->computed - computed;
            *code = target;
            *found = by_code ? nodedb_vamana__collect_codes(s, query, 0, plan->keep)
                             : nodedb_vamana__collect(s, query, plan->keep);
        }
        if (status == NODEDB_OK) status = nodedb_vamana__read_failure(s, err);
        if (status != NODEDB_OK || *found >= plan->k) return status;
        if (nodedb_vamana__widen_or_scan(s, query, plan)) return NODEDB_OK;
        status = nodedb_vamana__searcher_fit(s, plan->beam, s->arrays->capacity, err);
        if (status != NODEDB_OK) return status;
    }
}

/* Answers a query whose codes leave it in doubt: by a walk on the vectors with the same beam. On disk such a walk reads
 * what it measures; where that is more than a scan would read, it scans. */
static nodedb_status nodedb_vamana__answer_exactly(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                   nodedb_vamana__plan *plan, float norm, size_t *found,
                                                   nodedb_error *err) {
    nodedb_vamana__target exact = nodedb_vamana__query_target(s, norm), code;
    nodedb_status status = NODEDB_OK;
    plan->way = NODEDB_VAMANA__ON_VECTORS, plan->keep = plan->k;
    if (nodedb_vamana__is_on_disk(s->index) && (uint64_t)plan->beam * s->index->degree / 2 >= plan->passing)
        plan->way = NODEDB_VAMANA__BY_SCAN;
    else status = nodedb_vamana__walk_to_results(s, query, plan, norm, found, &code, err);
    if (status == NODEDB_OK && plan->way == NODEDB_VAMANA__BY_SCAN)
        status = nodedb_vamana__scan_all(s, &exact, query, plan->k, found, err);
    return status;
}

/* Leaves the results of a planned query in order in s->spare. */
static nodedb_status nodedb_vamana__find_results(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                 nodedb_vamana__plan *plan, float norm, size_t *found,
                                                 nodedb_error *err) {
    nodedb_vamana__target exact;
    nodedb_status status = NODEDB_OK;
    bool packed = nodedb_vamana__is_packed(s->index);
    nodedb_vamana__target code;
    if (nodedb_vamana__is_on_disk(s->index) && !packed &&
        !nodedb_vamana__is_filtered(query)) /* a filter may drop all of them */
        s->early = (uint32_t)nodedb_vamana__min(plan->keep, s->fetcher.batch_max);
    if (plan->way != NODEDB_VAMANA__BY_SCAN)
        status = nodedb_vamana__walk_to_results(s, query, plan, norm, found, &code, err);
    s->early = 0;
    exact = nodedb_vamana__query_target(s, norm);
    if (status == NODEDB_OK && plan->way == NODEDB_VAMANA__BY_SCAN)
        status = nodedb_vamana__scan_all(s, &exact, query, plan->k, found, err);
    else if (status == NODEDB_OK && plan->way == NODEDB_VAMANA__ON_CODES && !packed)
        status = nodedb_vamana__rerank(s, query, plan, &exact, &code, found, err);
    if (status == NODEDB_OK && plan->in_doubt && plan->way == NODEDB_VAMANA__ON_CODES)
        status = nodedb_vamana__answer_exactly(s, query, plan, norm, found, err);
    if (status == NODEDB_OK) status = nodedb_vamana__read_failure(s, err);
    if (status == NODEDB_OK) nodedb_vamana__sort_heap(s->arrays->ids, s->spare, *found);
    return status;
}

/* What a query is about, a vector or an id; NULL: nothing. */
static const void *nodedb_vamana__subject(const nodedb_vamana_query *query) {
    return query == NULL ? NULL : query->by_id ? &query->id : query->vector;
}

static nodedb_status nodedb_vamana__check_query(const nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                const void *vector, const nodedb_vamana_result *results,
                                                uint32_t *found, nodedb_error *err) {
    if (found != NULL) *found = 0;
    if (s == NULL || query == NULL || vector == NULL || results == NULL || found == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "searcher, query, its vector, results or found is NULL");
    return NODEDB_OK;
}

static void nodedb_vamana__reads_so_far(const nodedb_vamana_searcher *s, uint64_t *reads, uint64_t *retries) {
    *reads = 0, *retries = 0;
    if (s->fetcher.counters != NULL) s->fetcher.counters(s->fetcher.ctx, reads, retries);
}

/* Copies the best k of `n` results out. */
static void nodedb_vamana__copy_results(const nodedb_vamana_searcher *s, const nodedb_vamana__near *from, size_t n,
                                        uint32_t k, nodedb_vamana_result *results, uint32_t *found) {
    *found = n < k ? (uint32_t)n : k;
    for (uint32_t i = 0; i < *found; i++) results[i].id = s->arrays->ids[from[i].slot],
    results[i].distance = from[i].distance;
}

/* Prepares the query's vector in s->query, and its plan. `vector` is not used if the query names an id. */
static nodedb_status nodedb_vamana__begin_query(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                const void *vector, bool scan,
                                                nodedb_vamana__plan *plan, float *norm, nodedb_error *err) {
    nodedb_status status;
    nodedb_error reason;
    if (query->k > NODEDB_VAMANA_MAX_BEAM || query->beam > NODEDB_VAMANA_MAX_BEAM)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "k %u or beam %u is over %u", (unsigned)query->k,
                            (unsigned)query->beam, NODEDB_VAMANA_MAX_BEAM);
    s->hops = 0, s->computed = 0, s->exact = 0;
    s->read_errors.failed = NODEDB_OK, s->read_errors.damaged = 0;
    if (query->by_id) vector = nodedb_vamana__vector_of_id(s, query->id, &reason);
    if (vector == NULL) {
        if (err != NULL) *err = reason;
        return reason.status;
    }
    status = nodedb_vamana__prepare(s->index, vector, s->query, norm, -1, err);
    if (status != NODEDB_OK) return status;
    if (!scan) return nodedb_vamana__plan_query(s, query, plan, err);
    memset(plan, 0, sizeof *plan);
    plan->k = query->k == 0 ? NODEDB_VAMANA__DEFAULT_K : query->k, plan->way = NODEDB_VAMANA__BY_SCAN;
    return nodedb_vamana__searcher_fit(s, nodedb_vamana__at_most_live(s->index, plan->k), s->arrays->capacity, err);
}

/* Answers one query. The caller is counted in as a reader. */
static nodedb_status nodedb_vamana__answer(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                           const void *vector, bool scan,
                                           nodedb_vamana_result *results, uint32_t *found, nodedb_vamana_stats *stats,
                                           nodedb_error *err) {
    nodedb_vamana__plan plan;
    uint64_t reads, retries;
    size_t n = 0;
    float norm;
    nodedb_status status;
    nodedb_vamana__reads_so_far(s, &reads, &retries);
    status = nodedb_vamana__begin_query(s, query, vector, scan, &plan, &norm, err);
    if (status != NODEDB_OK) return status;
    status = nodedb_vamana__find_results(s, query, &plan, norm, &n, err);
    if (status != NODEDB_OK) return status;
    nodedb_vamana__copy_results(s, s->spare, n, plan.k, results, found);
    if (stats == NULL) return NODEDB_OK;
    nodedb_vamana__reads_so_far(s, &stats->reads, &stats->retries);
    stats->reads -= reads, stats->retries -= retries;
    stats->hops = s->hops, stats->distances = s->computed, stats->exact = s->exact;
    stats->scanned = plan.way == NODEDB_VAMANA__BY_SCAN;
    stats->damaged = s->read_errors.damaged;
    return NODEDB_OK;
}

/* One query by a walk, or with `scan` by a look at every vector. */
static nodedb_status nodedb_vamana__search_one(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                               bool scan, nodedb_vamana_result *results, uint32_t *found,
                                               nodedb_vamana_stats *stats, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_query(searcher, query, nodedb_vamana__subject(query), results, found,
                                                      err);
    uint32_t parity;
    if (status != NODEDB_OK) return status;
    searcher->arrays = nodedb_vamana__enter(searcher->index, searcher->stripe, &parity);
    status = nodedb_vamana__answer(searcher, query, query->vector, scan, results, found, stats, err);
    nodedb_vamana__leave(searcher->index, searcher->stripe, parity);
    return status;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_search(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                     nodedb_vamana_result *results, uint32_t *found,
                                                     nodedb_vamana_stats *stats, nodedb_error *err) {
    return nodedb_vamana__search_one(searcher, query, false, results, found, stats, err);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_scan(nodedb_vamana_searcher *searcher, const nodedb_vamana_query *query,
                                                   nodedb_vamana_result *results, uint32_t *found,
                                                   nodedb_vamana_stats *stats, nodedb_error *err) {
    return nodedb_vamana__search_one(searcher, query, true, results, found, stats, err);
}

/* ---- many queries ------------------------------------------------------------------------------------------------ */

/* What the queries of one search_many share. Lives for one call. */
typedef struct nodedb_vamana__query_batch {
    nodedb_vamana_searcher *s;
    const nodedb_vamana_query *common;
    const uint8_t *vectors;
    nodedb_vamana_result *results;
    uint32_t *found;
    uint32_t k;
    nodedb_vamana_stats sum;
    uint64_t failed;              /* the query of the first error */
    /* on disk: queries whose reads are under way, and those that walk meanwhile */
    struct nodedb_vamana__pending_rerank *group[2];
    uint32_t count[2], group_max, keep;
} nodedb_vamana__query_batch;

static void nodedb_vamana__add_stats(nodedb_vamana_stats *sum, const nodedb_vamana_stats *one) {
    sum->hops += one->hops, sum->distances += one->distances, sum->exact += one->exact;
    sum->reads += one->reads, sum->retries += one->retries, sum->scanned = sum->scanned || one->scanned;
    sum->damaged += one->damaged;
}

/* Answers query i at once. */
static nodedb_status nodedb_vamana__answer_one(nodedb_vamana__query_batch *q, uint64_t i, nodedb_error *err) {
    nodedb_vamana_searcher *s = q->s;
    nodedb_vamana_stats one;
    uint32_t parity;
    nodedb_status status;
    s->arrays = nodedb_vamana__enter(s->index, s->stripe, &parity); /* for each query: a writer never waits long */
    status = nodedb_vamana__answer(s, q->common, q->vectors + (size_t)i * s->index->vector_bytes,
                                   false, q->results + (size_t)i * q->k, &q->found[i], &one, err);
    nodedb_vamana__leave(s->index, s->stripe, parity);
    if (status != NODEDB_OK) {
        q->failed = i;
        return status;
    }
    nodedb_vamana__add_stats(&q->sum, &one);
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_search_many(nodedb_vamana_searcher *searcher,
                                                          const nodedb_vamana_query *common, const void *vectors,
                                                          uint64_t n, nodedb_vamana_result *results, uint32_t *found,
                                                          nodedb_vamana_stats *stats, nodedb_error *err) {
    uint32_t none, parity;
    nodedb_status status = nodedb_vamana__check_query(searcher, common, vectors, results,
                                                      n == 0 && found != NULL ? &none : found, err);
    nodedb_vamana__query_batch q;
    uint64_t i;
    for (i = 0; i < n && found != NULL; i++) found[i] = 0;
    if (status != NODEDB_OK) return status;
    if (common->by_id) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "search_many is about vectors, not about an id");
    memset(&q, 0, sizeof q);
    q.s = searcher, q.common = common, q.vectors = (const uint8_t *)vectors, q.results = results, q.found = found;
    q.k = common->k == 0 ? NODEDB_VAMANA__DEFAULT_K : common->k;
    if (nodedb_vamana__is_on_disk(searcher->index)) { /* its arrays never change */
        searcher->arrays = nodedb_vamana__enter(searcher->index, searcher->stripe, &parity);
        nodedb_vamana__leave(searcher->index, searcher->stripe, parity);
    }
    if (!nodedb_vamana__is_on_disk(searcher->index) || !nodedb_vamana__answer_on_disk(&q, n, &status, err))
        for (i = 0; i < n && status == NODEDB_OK; i++) status = nodedb_vamana__answer_one(&q, i, err);
    if (stats != NULL) *stats = q.sum;
    if (status != NODEDB_OK && err != NULL) {
        nodedb_error reason = *err;
        (void)nodedb_fail(err, status, 0, "query %llu: %.200s", (unsigned long long)q.failed, reason.message);
        err->sys_errno = reason.sys_errno, err->offset = reason.offset;
    }
    return status;
}

/* ---- all within a radius ----------------------------------------------------------------------------------------- */

/* Widens the beam until it holds results beyond the radius: as many as make the last result within as certain as the
 * first k of a search are. */
static nodedb_status nodedb_vamana__answer_range(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                 float radius, uint32_t most, nodedb_vamana_result *results,
                                                 uint32_t *found, nodedb_vamana_stats *stats, nodedb_error *err) {
    nodedb_vamana_query wide = *query;
    nodedb_vamana_stats one, sum;
    memset(&sum, 0, sizeof sum);
    wide.k = NODEDB_VAMANA__RANGE_FIRST < most ? NODEDB_VAMANA__RANGE_FIRST : most;
    for (;;) {
        uint32_t beam = query->beam == 0 ? NODEDB_VAMANA__DEFAULT_BEAM : query->beam;
        nodedb_status status;
        if (beam < 2 * (uint64_t)wide.k)
            beam = wide.k > NODEDB_VAMANA_MAX_BEAM / 2 ? NODEDB_VAMANA_MAX_BEAM : 2 * wide.k;
        wide.beam = beam;
        status = nodedb_vamana__answer(s, &wide, query->vector, false, results, found, &one, err);
        if (status != NODEDB_OK) {
            *found = 0;
            return status;
        }
        nodedb_vamana__add_stats(&sum, &one);
        if (*found < wide.k || wide.k == most || results[*found - 1].distance > radius) break;
        wide.k = wide.k < most / 2 ? 2 * wide.k : most;
    }
    while (*found > 0 && !(results[*found - 1].distance <= radius)) --*found;
    if (stats != NULL) *stats = sum;
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_search_range(nodedb_vamana_searcher *searcher,
                                                           const nodedb_vamana_query *query, float radius,
                                                           nodedb_vamana_result *results, uint32_t most,
                                                           uint32_t *found, nodedb_vamana_stats *stats,
                                                           nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_query(searcher, query, nodedb_vamana__subject(query), results, found,
                                                      err);
    uint32_t parity;
    if (status != NODEDB_OK) return status;
    if (radius != radius || most == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "the radius is not a number, or most is 0");
    if (most > NODEDB_VAMANA_MAX_BEAM)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "most %u is over %u", (unsigned)most, NODEDB_VAMANA_MAX_BEAM);
    searcher->arrays = nodedb_vamana__enter(searcher->index, searcher->stripe, &parity);
    status = nodedb_vamana__answer_range(searcher, query, radius, most, results, found, stats, err);
    nodedb_vamana__leave(searcher->index, searcher->stripe, parity);
    return status;
}

/* ---- making a searcher ------------------------------------------------------------------------------------------- */

NODEDB_VAMANA_API nodedb_vamana_searcher *nodedb_vamana_searcher_create(const nodedb_vamana *index,
                                                                        const nodedb_vamana_searcher_config *config,
                                                                        nodedb_error *err) {
    uint32_t beam = config != NULL && config->beam_max != 0 ? config->beam_max : 2 * NODEDB_VAMANA__DEFAULT_BEAM;
    uint64_t slots = NODEDB_VAMANA__FITS_ALL;
    nodedb_vamana_searcher *s;
    if (index == NULL || beam > NODEDB_VAMANA_MAX_BEAM) {
        (void)nodedb_fail(err, index == NULL ? NODEDB_ERR_INVALID : NODEDB_ERR_LIMIT, 0,
                          index == NULL ? "index is NULL" : "beam_max is over 1048576");
        return NULL;
    }
    if (!nodedb_vamana__is_on_disk(index) && (config == NULL || config->beam_max == 0)) { /* grows with the index */
        uint32_t parity;
        slots = nodedb_vamana__enter(index, 0, &parity)->capacity;
        nodedb_vamana__leave(index, 0, parity);
    }
    s = nodedb_vamana__searcher_new(index, beam, slots, false, err);
    if (s == NULL || !nodedb_vamana__is_on_disk(index)) return s;
    if (nodedb_vamana__set_fetcher(s, config == NULL ? NULL : config->fetcher, beam, err) == NODEDB_OK) return s;
    nodedb_vamana_searcher_destroy(s);
    return NULL;
}

/* ===================================================================================================================
 * BUILD: many vectors at once
 *
 * ParlayANN's prefix doubling: batches as large as the graph so far, at most 2% of all. All nodes of a batch search the
 * same graph, which does not change meanwhile, and write only their own rows. Then the reverse edges, sorted by the
 * node that they leave, are added, each node by one thread. The result depends neither on the number of threads nor on
 * which thread does what.
 * ================================================================================================================ */

#define NODEDB_VAMANA__BATCH_SHARE 50u      /* the largest batch is 1/50 of all vectors */
#define NODEDB_VAMANA__BATCH_SHARE_IP 200u  /* IP: 1/200, and 1/16 of the graph. Nodes of a batch do not meet, so a */
#define NODEDB_VAMANA__BATCH_GROWTH_IP 16u  /* long vector would be missing from the rows of its batch */
#define NODEDB_VAMANA__ALONE_BELOW 64u      /* items; for fewer no threads are started */
#define NODEDB_VAMANA__PROGRESS_CHUNK 8u    /* items that a thread takes at a time */
#define NODEDB_VAMANA__RADIX_BITS 11u

static uint64_t nodedb_vamana__largest_batch(const nodedb_vamana *index, uint64_t n) {
    return n / (index->metric == NODEDB_VAMANA_IP ? NODEDB_VAMANA__BATCH_SHARE_IP : NODEDB_VAMANA__BATCH_SHARE) + 1;
}

/* What all threads of a build share. They write rows and `next`, and nothing else. */
typedef struct nodedb_vamana__builder {
    nodedb_vamana *index;
    const uint8_t *input;         /* n vectors */
    const uint32_t *order;        /* a permutation of 0 .. n-1: the order of insertion */
    const uint32_t *slot_of;      /* by input position */
    uint64_t *pairs, *pairs_other; /* reverse edges: node that they leave << 32 | new node */
    uint32_t *rows;               /* second pass: the new rows, degree entries for each node of the batch */
    nodedb_vamana__head *heads;   /* and their heads */
    size_t *groups;               /* where each node's pairs begin, and the end */
    size_t pair_count, group_count, pairs_max;
    uint32_t pass;                /* 0, 1 */
    uint64_t from;                /* the batch begins at order[from] */
    size_t items;                 /* of the running phase */
    size_t next;                  /* first item that no thread has taken; atomic */
    void (*run)(struct nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item);
    nodedb_vamana_searcher *searchers[NODEDB_VAMANA_MAX_THREADS];
    uint32_t threads;
    bool cancelled;
} nodedb_vamana__builder;

/* One thread of a phase; the first is the caller's own. */
typedef struct nodedb_vamana__worker {
    nodedb_vamana__builder *build;
    nodedb_vamana_searcher *searcher;
    pthread_t thread;
    bool started;
} nodedb_vamana__worker;

static void *nodedb_vamana__work(void *argument) {
    nodedb_vamana__worker *worker = (nodedb_vamana__worker *)argument;
    nodedb_vamana__builder *build = worker->build;
    for (;;) {
        size_t item = nodedb__add_relaxed(&build->next, (size_t)NODEDB_VAMANA__PROGRESS_CHUNK);
        if (item >= build->items) return NULL;
        for (size_t i = item; i < build->items && i < item + NODEDB_VAMANA__PROGRESS_CHUNK; i++)
            build->run(build, worker->searcher, i);
    }
}

/* Runs one phase on all threads. If the system refuses a thread, the others take its items. */
static void nodedb_vamana__run_phase(nodedb_vamana__builder *build, size_t items,
                                     void (*run)(nodedb_vamana__builder *, nodedb_vamana_searcher *, size_t)) {
    nodedb_vamana__worker workers[NODEDB_VAMANA_MAX_THREADS];
    uint32_t threads = items < NODEDB_VAMANA__ALONE_BELOW ? 1 : build->threads;
    build->items = items, build->next = 0, build->run = run;
    for (uint32_t i = 0; i < threads; i++) workers[i].build = build, workers[i].searcher = build->searchers[i];
    for (uint32_t i = 1; i < threads; i++)
        workers[i].started = pthread_create(&workers[i].thread, NULL, nodedb_vamana__work, &workers[i]) == 0;
    (void)nodedb_vamana__work(&workers[0]);
    for (uint32_t i = 1; i < threads; i++)
        if (workers[i].started) (void)pthread_join(workers[i].thread, NULL);
}

/* Chooses a node's row. A new node's row is written at once, as no walk can find the node yet. In a second pass other
 * threads may read it, so the new row is kept aside until all of the batch have theirs. */
static void nodedb_vamana__build_choose(nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana *index = build->index;
    uint32_t slot = build->slot_of[build->order[build->from + item]], *aside = build->rows + item * index->degree;
    uint32_t count = nodedb_vamana__choose_neighbours(index, s, slot, NULL);
    if (build->pass == 0) {
        nodedb_vamana__set_row(index, index->arrays, slot, s->chosen, count, s->head);
        nodedb__store_relaxed(&index->arrays->parents[slot], nodedb_vamana__first_parent(index, s->chosen, count));
        return;
    }
    memcpy(aside, s->chosen, count * sizeof *aside);
    if (count < index->degree) aside[count] = NODEDB_VAMANA__NONE;
    build->heads[item] = s->head;
}

static void nodedb_vamana__build_put(nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana *index = build->index;
    uint32_t slot = build->slot_of[build->order[build->from + item]], *aside = build->rows + item * index->degree;
    uint32_t count = nodedb_vamana__row_count(index, aside);
    (void)s;
    nodedb_vamana__set_row(index, index->arrays, slot, aside, count, build->heads[item]);
}

/* Adds a node's reverse edges. More nodes of the batch may have chosen it as parent than it has room for; the others
 * have none for now. */
static void nodedb_vamana__build_reverse(nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana__arrays *a = build->index->arrays;
    size_t from = build->groups[item], to = build->groups[item + 1];
    uint32_t node = (uint32_t)(build->pairs[from] >> 32), room = UINT32_MAX;
    for (size_t i = from; i < to && build->pass == 0; i++) {
        uint32_t *parent = &a->parents[(uint32_t)build->pairs[i]];
        if (nodedb__load_relaxed(parent) != node) continue;
        if (room == UINT32_MAX) room = nodedb_vamana__room(build->index, a, node);
        if (room > 0) room--;
        else nodedb__store_relaxed(parent, NODEDB_VAMANA__NONE);
    }
    nodedb_vamana__add_edges(build->index, s, node, build->pairs + from, to - from,
                             build->index->degree - build->index->degree / NODEDB_VAMANA__SPARE_BATCH);
}

/* Puts a batch's vectors into their slots. They are not live yet: no row holds them, and no pruning may choose them. */
static void nodedb_vamana__build_store(nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana *index = build->index;
    uint32_t at = build->order[build->from + item], slot = build->slot_of[at];
    float norm = 0;
    (void)nodedb_vamana__prepare(index, build->input + (size_t)at * index->vector_bytes,
                                 nodedb_vamana__vector(index, index->arrays, slot), &norm, -1,
                                 NULL); /* build_admit has checked it */
    if (index->arrays->norms != NULL) index->arrays->norms[slot] = norm;
    index->arrays->heads[slot].level = nodedb_vamana__level_of(index, index->arrays->ids[slot]);
    nodedb_vamana__note_zeros(index, index->arrays, norm);
    nodedb_vamana__encode_new(index, s->turned, slot);
}

/* Collects the reverse edges of a batch and sorts them, stably, by the node that they leave: least digit first. */
static void nodedb_vamana__build_collect(nodedb_vamana__builder *build, size_t batch) {
    nodedb_vamana *index = build->index;
    size_t counts[1u << NODEDB_VAMANA__RADIX_BITS];
    build->pair_count = 0;
    for (size_t i = 0; i < batch; i++) {
        uint32_t slot = build->slot_of[build->order[build->from + i]];
        const uint32_t *row = nodedb_vamana__row(index, index->arrays, slot);
        for (uint32_t j = 0; j < index->degree && row[j] != NODEDB_VAMANA__NONE; j++)
            build->pairs[build->pair_count++] = (uint64_t)row[j] << 32 | slot;
    }
    assert(build->pair_count <= build->pairs_max);
    for (unsigned shift = 32; shift < 64 && (uint64_t)index->arrays->slots >> (shift - 32) != 0;
         shift += NODEDB_VAMANA__RADIX_BITS) {
        size_t sum = 0, mask = (1u << NODEDB_VAMANA__RADIX_BITS) - 1;
        uint64_t *swap = build->pairs;
        memset(counts, 0, sizeof counts);
        for (size_t i = 0; i < build->pair_count; i++) counts[build->pairs[i] >> shift & mask]++;
        for (size_t i = 0; i <= mask; i++) {
            size_t count = counts[i];
            counts[i] = sum, sum += count;
        }
        for (size_t i = 0; i < build->pair_count; i++)
            build->pairs_other[counts[build->pairs[i] >> shift & mask]++] = build->pairs[i];
        build->pairs = build->pairs_other, build->pairs_other = swap;
    }
    build->group_count = 0;
    for (size_t i = 0; i < build->pair_count; i++)
        if (i == 0 || build->pairs[i] >> 32 != build->pairs[i - 1] >> 32) build->groups[build->group_count++] = i;
    build->groups[build->group_count] = build->pair_count;
}

/* Chooses the neighbours of a whole batch, and adds the edges back. */
static void nodedb_vamana__build_link(nodedb_vamana__builder *build, size_t batch) {
    build->rows = (uint32_t *)(void *)build->pairs_other;
    build->heads = (nodedb_vamana__head *)(void *)(build->rows + batch * build->index->degree);
    nodedb_vamana__run_phase(build, batch, nodedb_vamana__build_choose);
    if (build->pass > 0) nodedb_vamana__run_phase(build, batch, nodedb_vamana__build_put);
    nodedb_vamana__build_collect(build, batch);
    nodedb_vamana__run_phase(build, build->group_count, nodedb_vamana__build_reverse);
    for (size_t i = 0; i < batch && build->pass == 0; i++) {
        uint32_t slot = build->slot_of[build->order[build->from + i]];
        if (build->index->arrays->parents[slot] == NODEDB_VAMANA__NONE)
            nodedb_vamana__find_parent(build->index, build->searchers[0], slot);
    }
}

static void nodedb_vamana__build_batch(nodedb_vamana__builder *build, size_t batch) {
    nodedb_vamana *index = build->index;
    size_t i;
    nodedb_vamana__run_phase(build, batch, nodedb_vamana__build_store);
    if (index->arrays->entry != NODEDB_VAMANA__NONE) nodedb_vamana__build_link(build, batch);
    for (i = 0; i < build->threads; i++) nodedb_vamana__count_beam(index, build->searchers[i]);
    nodedb_vamana__adapt_beam(index);
    for (i = 0; i < batch; i++)
        nodedb_vamana__set_state(index->arrays, build->slot_of[build->order[build->from + i]], NODEDB_VAMANA__LIVE);
    if (index->arrays->entry == NODEDB_VAMANA__NONE) /* the first node of all, a batch of its own */
        nodedb__store_release(&index->arrays->entry, build->slot_of[build->order[build->from]]);
    for (i = 0; i < batch; i++)
        nodedb_vamana__offer_start(index->arrays, build->slot_of[build->order[build->from + i]]);
    nodedb_vamana__count_live(index, index->live + (uint32_t)batch, index->removed);
    nodedb_vamana__count_inserted(index, (uint32_t)batch);
}

static void nodedb_vamana__build_code(nodedb_vamana__builder *build, nodedb_vamana_searcher *s, size_t item) {
    nodedb_vamana *index = build->index;
    uint32_t slot = (uint32_t)item;
    if (index->arrays->states[slot] != NODEDB_VAMANA__FREE)
        (void)nodedb_vamana__encode_slot(index, index->arrays, index->recoder, index->recodes, s->turned, slot);
}

/* Makes the codes that are due, with all threads. */
static void nodedb_vamana__build_codes(nodedb_vamana__builder *build) {
    nodedb_vamana *index = build->index;
    while (nodedb_vamana__make_codes(index, 0)) {
        if (!nodedb_vamana__is_trained(index->recoder) || index->recode_at == index->arrays->slots) continue;
        nodedb_vamana__run_phase(build, index->arrays->slots, nodedb_vamana__build_code);
        index->recode_at = index->arrays->slots;
    }
}

/* Inserts everything, batch by batch; returns how many before it was cancelled. */
static uint64_t nodedb_vamana__build_all(nodedb_vamana__builder *build, uint64_t n, nodedb_vamana_progress progress,
                                         void *ctx) {
    nodedb_vamana *index = build->index;
    uint64_t inserted = 0, batch_max = build->pairs_max / index->degree;
    bool goes_on = true;
    for (build->pass = 0; build->pass < index->passes && goes_on; build->pass++) {
        for (uint64_t done = 0; done < n && goes_on;) {
            uint64_t batch = index->live;
            if (index->metric == NODEDB_VAMANA_IP) batch /= NODEDB_VAMANA__BATCH_GROWTH_IP;
            if (batch < 1) batch = 1;
            if (batch > batch_max) batch = batch_max;
            if (batch > n - done) batch = n - done;
            build->from = done;
            if (build->pass == 0) nodedb_vamana__build_batch(build, (size_t)batch);
            else nodedb_vamana__build_link(build, (size_t)batch);
            done += batch;
            if (build->pass == 0) inserted = done;
            nodedb_vamana__build_codes(build);
            if (progress != NULL) goes_on = progress(ctx, build->pass * n + done, index->passes * n);
            build->cancelled = !goes_on && (done < n || build->pass + 1 < index->passes);
        }
    }
    if (index->live / 2 >= index->code_live || inserted >= index->live / 8) /* the last codes: by the whole graph */
        index->code_due = NODEDB_VAMANA__CODE_FIRST;
    nodedb_vamana__build_codes(build);
    return inserted;
}

/* Takes back the ids of vectors that a cancelled build did not insert: order[from .. to). Readers may hold their
 * slots. */
static void nodedb_vamana__build_withdraw(nodedb_vamana *index, const uint32_t *slot_of, const uint32_t *order,
                                          uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; i++) nodedb_vamana__table_drop(index->arrays,
                                                                   slot_of[order != NULL ? order[i] : i]);
    if (from < to) nodedb_vamana__await_readers(index);
    for (uint64_t i = to; i-- > from;) nodedb_vamana__free_slot(index, slot_of[order != NULL ? order[i] : i]);
}

/* Checks all input first, so that a bad vector changes nothing. Then gives each id a slot and enters it in the
 * table. */
static nodedb_status nodedb_vamana__build_admit(nodedb_vamana *index, const uint64_t *ids, const uint8_t *input,
                                                uint64_t n,
                                                uint32_t *slot_of, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    uint64_t i;
    float norm;
    for (i = 0; i < n && status == NODEDB_OK; i++)
        status = nodedb_vamana__prepare(index, input + (size_t)i * index->vector_bytes, index->writer->query, &norm,
                                        (int64_t)i, err);
    if (status != NODEDB_OK) return status;
    for (i = 0; i < n; i++) {
        uint64_t id = ids != NULL ? ids[i] : i;
        if (nodedb_vamana__find(index->arrays, id) != NODEDB_VAMANA__NONE) {
            status = nodedb_fail(err, NODEDB_ERR_EXISTS, 0, "vector %llu: the id %llu is there already",
                                  (unsigned long long)i, (unsigned long long)id);
            break;
        }
        slot_of[i] = nodedb_vamana__alloc_slot(index);
        index->arrays->ids[slot_of[i]] = id;
        if (!nodedb_vamana__table_add(index->arrays, slot_of[i])) assert(false);
    }
    if (status != NODEDB_OK) nodedb_vamana__build_withdraw(index, slot_of, NULL, 0, i);
    return status;
}

/* Runs a build whose lists are allocated. */
static nodedb_status nodedb_vamana__build_run(nodedb_vamana *index, nodedb_vamana__builder *build, uint32_t *slot_of,
                                              uint32_t *order, const uint64_t *ids, uint64_t n,
                                              nodedb_vamana_progress progress, void *ctx, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__make_room(index, n, err);
    uint64_t random = index->seed, done;
    if (status == NODEDB_OK) status = nodedb_vamana__build_admit(index, ids, build->input, n, slot_of, err);
    if (status != NODEDB_OK) return status;
    for (uint64_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (uint64_t i = n; i > 1; i--) { /* Fisher-Yates */
        uint64_t other = nodedb_mix64(random++) % i;
        uint32_t swap = order[i - 1];
        order[i - 1] = order[other], order[other] = swap;
    }
    build->slot_of = slot_of, build->order = order;
    done = nodedb_vamana__build_all(build, n, progress, ctx);
    nodedb_vamana__build_withdraw(index, slot_of, order, done, n);
    if (!build->cancelled) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_CANCELLED, 0, "cancelled after %llu of %llu vectors", (unsigned long long)done,
                        (unsigned long long)n);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_build(nodedb_vamana *index, const uint64_t *ids, const void *vectors,
                                                    uint64_t n, uint32_t threads, nodedb_vamana_progress progress,
                                                    void *progress_ctx, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_unsaved(index, err);
    nodedb_vamana__builder build;
    uint64_t batch_max;
    uint64_t *pairs = NULL, *pairs_other = NULL;
    size_t *groups = NULL;
    uint32_t *positions = NULL, i;
    size_t pairs_max, bytes;
    if (status != NODEDB_OK) return status;
    if (n == 0) return NODEDB_OK;
    batch_max = nodedb_vamana__largest_batch(index, n);
    if (vectors == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "vectors is NULL");
    if (threads > NODEDB_VAMANA_MAX_THREADS)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "%u threads are over %u", (unsigned)threads,
                            NODEDB_VAMANA_MAX_THREADS);
    if (n > NODEDB_VAMANA_MAX_VECTORS - index->live || n > SIZE_MAX / 16 ||
        __builtin_mul_overflow((size_t)batch_max, index->degree, &pairs_max) || pairs_max > SIZE_MAX / 16 ||
        __builtin_mul_overflow((size_t)n, index->vector_bytes, &bytes))
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "%llu vectors do not fit one index", (unsigned long long)n);

    memset(&build, 0, sizeof build);
    build.index = index, build.input = (const uint8_t *)vectors, build.pairs_max = pairs_max;
    build.threads = threads == 0 ? 1 : threads;
    pairs = (uint64_t *)nodedb__alloc(&index->allocator, pairs_max * sizeof *pairs, NODEDB_CACHE_LINE_BYTES);
    pairs_other = (uint64_t *)nodedb__alloc(&index->allocator, pairs_max * sizeof *pairs, NODEDB_CACHE_LINE_BYTES);
    groups = (size_t *)nodedb__alloc(&index->allocator, (pairs_max + 1) * sizeof *groups, NODEDB_CACHE_LINE_BYTES);
    positions = (uint32_t *)nodedb__alloc(&index->allocator, 2 * (size_t)n * sizeof *positions,
                                          NODEDB_CACHE_LINE_BYTES);
    if (pairs == NULL || pairs_other == NULL || groups == NULL || positions == NULL)
        status = nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for the build's lists");
    build.pairs = pairs, build.pairs_other = pairs_other, build.groups = groups;
    for (i = 0; i < build.threads && status == NODEDB_OK; i++) {
        build.searchers[i] = nodedb_vamana__searcher_new(index, nodedb_vamana__beam_most(index),
                                                         index->arrays->capacity + n, true, err);
        if (build.searchers[i] == NULL) status = NODEDB_ERR_NO_MEMORY;
    }
    if (status == NODEDB_OK)
        status = nodedb_vamana__build_run(index, &build, positions, positions + n, ids, n, progress, progress_ctx, err);
    for (i = 0; i < build.threads; i++) nodedb_vamana_searcher_destroy(build.searchers[i]);
    nodedb__release(&index->allocator, positions, 2 * (size_t)n * sizeof *positions);
    nodedb__release(&index->allocator, groups, (pairs_max + 1) * sizeof *groups);
    nodedb__release(&index->allocator, pairs_other, pairs_max * sizeof *pairs);
    nodedb__release(&index->allocator, pairs, pairs_max * sizeof *pairs);
    return status;
}

/* ===================================================================================================================
 * MEMORY: creating, growing, compacting, asking
 * ================================================================================================================ */

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void nodedb_vamana__count_bytes(nodedb_vamana *index, size_t taken, size_t given) {
    nodedb__store_relaxed(&index->bytes, index->bytes + taken - given);
}

/* Memory as the allocator returns it. Large arrays ask for huge pages: a search touches hundreds of places that are far
 * apart, and with small pages nearly every one costs a page-table walk beside its own cache miss. */
static void *nodedb_vamana__alloc_raw(nodedb_vamana *index, size_t bytes, size_t align) {
    bool large = bytes >= 2 * NODEDB_VAMANA__HUGE_BYTES && !index->no_huge_pages;
    void *memory = nodedb__alloc(&index->allocator, bytes, large ? NODEDB_VAMANA__HUGE_BYTES : align);
    if (memory == NULL) return NULL;
#if defined(MADV_HUGEPAGE)
    if (large && (uintptr_t)memory % NODEDB_VAMANA__HUGE_BYTES == 0)
        (void)madvise(memory, bytes / NODEDB_VAMANA__HUGE_BYTES * NODEDB_VAMANA__HUGE_BYTES, MADV_HUGEPAGE);
#endif
    nodedb_vamana__count_bytes(index, bytes, 0);
    return memory;
}

/* Zeroed memory for `count` items. */
static void *nodedb_vamana__alloc(nodedb_vamana *index, size_t count, size_t size, size_t align) {
    size_t bytes;
    void *memory = __builtin_mul_overflow(count, size, &bytes) ? NULL : nodedb_vamana__alloc_raw(index, bytes, align);
    if (memory != NULL) memset(memory, 0, bytes);
    return memory;
}

static void nodedb_vamana__release(nodedb_vamana *index, void *memory, size_t count, size_t size) {
    if (memory == NULL) return;
    assert(index->bytes >= (uint64_t)count * size);
    nodedb_vamana__count_bytes(index, 0, count * size);
    nodedb__release(&index->allocator, memory, count * size);
}

/* The bytes of a padded vector: long vectors start on a cache line, short ones do not waste one. */
static size_t nodedb_vamana__padded(size_t bytes) {
    size_t unit = bytes >= 256 ? 64 : bytes > 32 ? 32 : 16;
    return (bytes + unit - 1) / unit * unit;
}

/* Sets the fields that follow from dim, type and degree. */
static void nodedb_vamana__set_shape(nodedb_vamana *index) {
    const nodedb_vamana__kernel_set *k = index->kernels;
    size_t size = index->type == NODEDB_VAMANA_F32 ? sizeof(float) : 1;
    index->vector_bytes = index->dim * size;
    index->stride = nodedb_vamana__padded(index->vector_bytes);
    index->components = index->stride / size;
    index->row_words = ((size_t)index->degree + 15) / 16 * 16;
    index->many_l2 = index->type == NODEDB_VAMANA_F32  ? k->l2_f32
                     : index->type == NODEDB_VAMANA_U8 ? k->l2_u8
                                                       : k->l2_i8;
    index->many_dot = index->type == NODEDB_VAMANA_F32  ? k->dot_f32
                      : index->type == NODEDB_VAMANA_U8 ? k->dot_u8
                                                        : k->dot_i8;
}

/* ---- capacity ---------------------------------------------------------------------------------------------------- */

#define NODEDB_VAMANA__GROWTH_SHARE 16u

static size_t nodedb_vamana__coder_bytes(const nodedb_vamana *index) {
    return sizeof(nodedb_vamana__coder) + index->dim * sizeof(float);
}

/* Frees a coder that the index does not count among its bytes. */
static void nodedb_vamana__free_coder(const nodedb_vamana *index, nodedb_vamana__coder *coder) {
    nodedb__release(&index->allocator, coder, nodedb_vamana__coder_bytes(index));
}

static void nodedb_vamana__release_coder(nodedb_vamana *index, nodedb_vamana__coder *coder) {
    if (coder == NULL) return;
    nodedb_vamana__count_bytes(index, 0, nodedb_vamana__coder_bytes(index));
    nodedb_vamana__free_coder(index, coder);
}

/* Frees arrays but not their coder, which other arrays may share. */
static void nodedb_vamana__release_arrays(nodedb_vamana *index, nodedb_vamana__arrays *a) {
    if (a == NULL) return;
    nodedb_vamana__release(index, a->vectors, a->capacity, index->stride);
    nodedb_vamana__release(index, a->ids, a->capacity, sizeof *a->ids);
    nodedb_vamana__release(index, a->rows, a->capacity, index->row_words * sizeof *a->rows);
    nodedb_vamana__release(index, a->heads, a->capacity, sizeof *a->heads);
    nodedb_vamana__release(index, a->parents, a->capacity, sizeof *a->parents);
    nodedb_vamana__release(index, a->norms, a->capacity, sizeof *a->norms);
    nodedb_vamana__release(index, a->states, a->capacity, 1);
    nodedb_vamana__release(index, a->table, a->table_size, sizeof *a->table);
    if (a->codes != NULL) nodedb_vamana__release(index, a->codes, a->capacity, a->coder->stride);
    nodedb_vamana__release(index, a, 1, sizeof *a);
}

/* Empty arrays of that capacity, with codes if there is a coder. NULL and the reason on failure. */
static nodedb_vamana__arrays *nodedb_vamana__alloc_arrays(nodedb_vamana *index, uint64_t capacity,
                                                          nodedb_vamana__coder *coder, nodedb_error *err) {
    const size_t line = NODEDB_CACHE_LINE_BYTES;
    nodedb_vamana__arrays *a;
    if (capacity > NODEDB_VAMANA_MAX_VECTORS || nodedb_vamana__table_size_for(capacity) == 0) {
        (void)nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "%llu vectors do not fit one index", (unsigned long long)capacity);
        return NULL;
    }
    a = (nodedb_vamana__arrays *)nodedb_vamana__alloc(index, 1, sizeof *a, line);
    if (a != NULL) {
        a->capacity = (uint32_t)capacity, a->entry = NODEDB_VAMANA__NONE, a->coder = coder;
        memset(a->starts, 0xFF, sizeof a->starts); /* NONE */
        a->table_size = nodedb_vamana__table_size_for(capacity);
        a->vectors = (uint8_t *)nodedb_vamana__alloc(index, a->capacity, index->stride, line);
        a->ids = (uint64_t *)nodedb_vamana__alloc(index, a->capacity, sizeof *a->ids, line);
        a->rows = (uint32_t *)nodedb_vamana__alloc(index, a->capacity, index->row_words * sizeof *a->rows, line);
        a->heads = (nodedb_vamana__head *)nodedb_vamana__alloc(index, a->capacity, sizeof *a->heads, line);
        a->parents = (uint32_t *)nodedb_vamana__alloc(index, a->capacity, sizeof *a->parents, line);
        if (index->metric != NODEDB_VAMANA_L2)
            a->norms = (float *)nodedb_vamana__alloc(index, a->capacity, sizeof *a->norms, line);
        a->states = (uint8_t *)nodedb_vamana__alloc(index, a->capacity, 1, line);
        a->table = (uint32_t *)nodedb_vamana__alloc(index, a->table_size, sizeof *a->table, line);
        if (coder != NULL) a->codes = (uint8_t *)nodedb_vamana__alloc(index, a->capacity, coder->stride, line);
    }
    if (a == NULL || a->vectors == NULL || a->ids == NULL || a->rows == NULL ||
        a->heads == NULL || a->parents == NULL || a->states == NULL || a->table == NULL ||
        (a->norms == NULL && index->metric != NODEDB_VAMANA_L2) ||
        (a->codes == NULL && coder != NULL)) {
        nodedb_vamana__release_arrays(index, a);
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for %llu vectors of %u components",
                           (unsigned long long)capacity, (unsigned)index->dim);
        return NULL;
    }
    memset(a->table, 0xFF, a->table_size * sizeof *a->table);                        /* NONE */
    memset(a->rows, 0xFF, (size_t)a->capacity * index->row_words * sizeof *a->rows); /* NONE */
    memset(a->parents, 0xFF, (size_t)a->capacity * sizeof *a->parents);              /* NONE */
    return a;
}

/* Readers that enter from now on get these arrays. */
static void nodedb_vamana__publish(nodedb_vamana *index, nodedb_vamana__arrays *a) {
    nodedb__store_release(&index->arrays, a);
}

static void nodedb_vamana__drop_recoding(nodedb_vamana *index) {
    if (index->recoder == NULL) return;
    nodedb_vamana__release(index, index->recodes, index->arrays->capacity, index->recoder->stride);
    nodedb_vamana__release_coder(index, index->recoder);
    index->recoder = NULL, index->recodes = NULL;
}

/* Moves the codes that are being made into a larger array. Without memory they start over with the next change.
 * Starting over at each growth would never end: the arrays grow about as often as a round of codes is made. */
static void nodedb_vamana__grow_recoding(nodedb_vamana *index, uint32_t capacity) {
    size_t stride = index->recoder == NULL ? 0 : index->recoder->stride;
    uint8_t *larger;
    if (index->recoder == NULL) return;
    larger = (uint8_t *)nodedb_vamana__alloc(index, capacity, stride, NODEDB_CACHE_LINE_BYTES);
    if (larger == NULL) {
        nodedb_vamana__drop_recoding(index);
        return;
    }
    memcpy(larger, index->recodes, index->recode_at * stride);
    nodedb_vamana__release(index, index->recodes, index->arrays->capacity, stride);
    index->recodes = larger;
}

static nodedb_status nodedb_vamana__grow(nodedb_vamana *index, uint64_t capacity, nodedb_error *err) {
    nodedb_vamana__arrays *old = index->arrays, *a;
    uint32_t slot;
    if (capacity <= old->capacity) return NODEDB_OK;
    if (nodedb_vamana__searcher_fit(index->writer, 0, capacity, err) != NODEDB_OK) return NODEDB_ERR_NO_MEMORY;
    nodedb__store_relaxed(&index->writer_bytes, nodedb_vamana_searcher_memory_bytes(index->writer));
    a = nodedb_vamana__alloc_arrays(index, capacity, old->coder, err);
    if (a == NULL) return err != NULL ? err->status : NODEDB_ERR_NO_MEMORY;
    nodedb_vamana__grow_recoding(index, a->capacity);
    memcpy(a->vectors, old->vectors, old->slots * index->stride);
    memcpy(a->ids, old->ids, old->slots * sizeof *old->ids);
    memcpy(a->rows, old->rows, old->slots * index->row_words * sizeof *old->rows);
    memcpy(a->heads, old->heads, old->slots * sizeof *old->heads);
    memcpy(a->parents, old->parents, old->slots * sizeof *old->parents);
    if (old->norms != NULL) memcpy(a->norms, old->norms, old->slots * sizeof *old->norms);
    memcpy(a->states, old->states, old->slots);
    if (old->codes != NULL) memcpy(a->codes, old->codes, old->slots * old->coder->stride);
    a->slots = old->slots, a->entry = old->entry, a->zeros = old->zeros;
    memcpy(a->starts, old->starts, sizeof a->starts);
    for (slot = 0; slot < a->slots; slot++)
        if (a->states[slot] == NODEDB_VAMANA__LIVE && !nodedb_vamana__table_add(a, slot)) assert(false);
    nodedb_vamana__publish(index, a);
    nodedb_vamana__await_readers(index);
    nodedb_vamana__release_arrays(index, old);
    return NODEDB_OK;
}

/* The next capacity, for at least `wanted` slots: 1/16 more, and at least 64 more or, if there are fewer, twice as
 * many. An insert then pays for copying 16 vectors, a hundredth of its cost, and little memory is unused. */
static uint64_t nodedb_vamana__next_capacity(uint64_t capacity, uint64_t wanted) {
    uint64_t more = capacity / NODEDB_VAMANA__GROWTH_SHARE, least;
    if (more < NODEDB_VAMANA__GROWTH_LEAST)
        more = capacity < NODEDB_VAMANA__GROWTH_LEAST ? capacity : NODEDB_VAMANA__GROWTH_LEAST;
    least = capacity + more;
    if (least > NODEDB_VAMANA_MAX_VECTORS) least = NODEDB_VAMANA_MAX_VECTORS;
    return wanted < least ? least : wanted;
}

/* Makes room for `more` slots. */
static nodedb_status nodedb_vamana__make_room(nodedb_vamana *index, uint64_t more, nodedb_error *err) {
    uint64_t capacity = index->arrays->capacity, free_slots = capacity - index->live - index->removed;
    if (more <= free_slots) return NODEDB_OK;
    return nodedb_vamana__grow(index, nodedb_vamana__next_capacity(capacity, capacity + (more - free_slots)), err);
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

#define NODEDB_VAMANA__DEFAULT_DEGREE 64u
#define NODEDB_VAMANA__DEFAULT_BEAM_BUILD 128u
#define NODEDB_VAMANA__DEFAULT_ALPHA 1.2f
#define NODEDB_VAMANA__DEFAULT_PASSES 1u

/* The widest beam that choosing neighbours or judging codes takes. */
static uint32_t nodedb_vamana__writer_beam(const nodedb_vamana *index) {
    uint32_t most = nodedb_vamana__beam_most(index), judge = nodedb_vamana__judge_beam(index);
    return most > judge ? most : judge;
}

/* The writer's scratch memory; `grow` grows it with the arrays. */
static nodedb_vamana_searcher *nodedb_vamana__new_writer(nodedb_vamana *index, nodedb_error *err) {
    uint32_t beam = nodedb_vamana__writer_beam(index);
    nodedb_vamana_searcher *s = nodedb_vamana__searcher_new(index, beam, index->arrays->capacity, true, err);
    index->writer_bytes = nodedb_vamana_searcher_memory_bytes(s);
    return s;
}

static nodedb_status nodedb_vamana__check_config(const nodedb_vamana_config *c, nodedb_error *err) {
    if (c == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "config is NULL");
    if (c->dim < 1 || c->dim > NODEDB_VAMANA_MAX_DIM)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "dim %u is not in 1 .. %u", (unsigned)c->dim,
                            NODEDB_VAMANA_MAX_DIM);
    if (c->type != NODEDB_VAMANA_F32 && c->type != NODEDB_VAMANA_U8 && c->type != NODEDB_VAMANA_I8)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "type %d is none of F32, U8, I8", (int)c->type);
    if ((int)c->code < (int)NODEDB_VAMANA_CODE_AUTO || (int)c->code > (int)NODEDB_VAMANA_CODE_4BIT)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "code %d is none of AUTO, NONE, 8BIT, 4BIT", (int)c->code);
    if (c->passes > 2) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "passes %u is over 2", (unsigned)c->passes);
    if (c->metric != NODEDB_VAMANA_L2 && c->metric != NODEDB_VAMANA_IP && c->metric != NODEDB_VAMANA_COSINE)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "metric %d is none of L2, IP, COSINE", (int)c->metric);
    if (c->degree != 0 && (c->degree < NODEDB_VAMANA_MIN_DEGREE || c->degree > NODEDB_VAMANA_MAX_DEGREE))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "degree %u is not in %u .. %u", (unsigned)c->degree,
                            NODEDB_VAMANA_MIN_DEGREE, NODEDB_VAMANA_MAX_DEGREE);
    if (c->beam_build > NODEDB_VAMANA_MAX_BEAM_BUILD)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "beam_build %u is over %u", (unsigned)c->beam_build,
                            NODEDB_VAMANA_MAX_BEAM_BUILD);
    if (c->alpha != 0 && !(c->alpha >= 1 && c->alpha <= 2))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "alpha %g is not in 1 .. 2", (double)c->alpha);
    return NODEDB_OK;
}

/* An index without arrays. */
static nodedb_vamana *nodedb_vamana__new(const nodedb_vamana_config *c, nodedb_error *err) {
    const nodedb_vamana__kernel_set *kernels;
    nodedb_vamana *index;
    if (nodedb_vamana__check_config(c, err) != NODEDB_OK) return NULL;
    kernels = nodedb_vamana__choose_kernels(c->kernel, err);
    if (kernels == NULL) return NULL;
    index = (nodedb_vamana *)nodedb__alloc_zero(&c->allocator, sizeof *index, NODEDB_CACHE_LINE_BYTES);
    if (index == NULL) {
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for an index");
        return NULL;
    }
    index->readers = (nodedb_vamana__readers *)nodedb__alloc_zero(&c->allocator, sizeof *index->readers,
                                                                  NODEDB_CACHE_LINE_BYTES);
    if (index->readers == NULL) {
        nodedb__release(&c->allocator, index, sizeof *index);
        (void)nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for an index");
        return NULL;
    }
    index->dim = c->dim, index->type = c->type, index->metric = c->metric, index->seed = c->seed;
    index->code = c->code, index->passes = c->passes == 0 ? NODEDB_VAMANA__DEFAULT_PASSES : c->passes;
    index->no_huge_pages = c->no_huge_pages;
    index->degree = c->degree == 0 ? NODEDB_VAMANA__DEFAULT_DEGREE : c->degree;
    index->beam_build = c->beam_build == 0 ? NODEDB_VAMANA__DEFAULT_BEAM_BUILD : c->beam_build;
    index->beam_now = index->beam_build, index->beam_adapts = c->beam_build == 0;
    index->alpha = c->alpha == 0 ? NODEDB_VAMANA__DEFAULT_ALPHA : c->alpha;
    index->kernels = kernels;
    index->allocator = c->allocator, index->logger = c->logger;
    index->io = nodedb__io_or_posix(&c->io);
    index->bytes = sizeof *index + sizeof *index->readers;
    index->first_free = NODEDB_VAMANA__NONE, index->code_due = NODEDB_VAMANA__CODE_FIRST;
    index->colour = NODEDB_VAMANA__REMOVED;
    nodedb_vamana__set_shape(index);
    return index;
}

NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_create(const nodedb_vamana_config *config, nodedb_error *err) {
    nodedb_vamana *index = nodedb_vamana__new(config, err);
    uint64_t capacity;
    if (index == NULL) return NULL;
    capacity = config->capacity == 0 ? NODEDB_VAMANA__FIRST_CAPACITY : config->capacity;
    index->arrays = nodedb_vamana__alloc_arrays(index, capacity, NULL, err);
    if (index->arrays != NULL) index->writer = nodedb_vamana__new_writer(index, err);
    if (index->writer != NULL) return index;
    nodedb_vamana_destroy(index);
    return NULL;
}

/* The same sums as in alloc_arrays, build and end_codes. Codes count twice, those in use and those that replace them:
 * at worst 4 and 8 bits. */
NODEDB_VAMANA_API uint64_t nodedb_vamana_build_bytes(const nodedb_vamana_config *config, uint64_t n, uint32_t threads,
                                                     nodedb_error *err) {
    nodedb_vamana *index = nodedb_vamana__new(config, err);
    nodedb_vamana_searcher s;
    uint64_t first, capacity, bytes, lists, code4, code8, without_codes;
    if (index == NULL) return 0;
    memset(&s, 0, sizeof s);
    s.index = index, s.prunes = true;
    first = capacity = config->capacity == 0 ? NODEDB_VAMANA__FIRST_CAPACITY : config->capacity;
    if (n > capacity) capacity = nodedb_vamana__next_capacity(capacity, n);
    nodedb_vamana__searcher_shape(&s, nodedb_vamana__writer_beam(index), capacity + n);
    lists = nodedb_vamana__largest_batch(index, n) * index->degree;
    code8 = nodedb_vamana__padded(index->dim);
    code4 = nodedb_vamana__padded(((size_t)index->dim + 63) / 64 * 32);
    if (index->code == NODEDB_VAMANA_CODE_NONE || n < NODEDB_VAMANA__CODE_FIRST) code4 = code8 = 0;
    else if (index->code == NODEDB_VAMANA_CODE_8BIT) code4 = code8;
    else if (index->code == NODEDB_VAMANA_CODE_4BIT) code8 = code4;
    bytes = index->bytes + 3 * sizeof(nodedb_vamana__arrays) + 2 * (uint64_t)nodedb_vamana__coder_bytes(index);
    without_codes = index->stride + index->row_words * 4 + 8 + 4 + 4 + 4 + 1;
    bytes += capacity * (without_codes + code4 + code8);
    bytes += (uint64_t)nodedb_vamana__table_size_for(capacity) * sizeof(uint32_t);
    if (capacity > first) /* both exist while the first arrays are copied */
        bytes += first * without_codes + (uint64_t)nodedb_vamana__table_size_for(first) * sizeof(uint32_t);
    bytes += ((threads == 0 ? 1 : threads) + (uint64_t)1) * (sizeof s + s.memory_bytes); /* and the writer's */
    bytes += lists * 2 * sizeof(uint64_t) + (lists + 1) * sizeof(size_t) + 2 * n * sizeof(uint32_t);
    nodedb_vamana_destroy(index);
    if (capacity <= NODEDB_VAMANA_MAX_VECTORS) return bytes;
    (void)nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "%llu vectors do not fit one index", (unsigned long long)capacity);
    return 0;
}

NODEDB_VAMANA_API void nodedb_vamana_destroy(nodedb_vamana *index) {
    nodedb_allocator allocator;
    if (index == NULL) return;
    allocator = index->allocator;
    nodedb_vamana_searcher_destroy(index->writer);
    nodedb_vamana__save_free(index, index->save);
    nodedb_vamana__free_file(index);
    nodedb_vamana__drop_recoding(index);
    if (index->arrays != NULL) {
        nodedb_vamana__coder *coder = index->arrays->coder;
        nodedb_vamana__release_arrays(index, index->arrays);
        nodedb_vamana__release_coder(index, coder);
    }
    assert(index->bytes == sizeof *index + sizeof *index->readers);
    nodedb__release(&allocator, index->readers, sizeof *index->readers);
    nodedb__release(&allocator, index, sizeof *index);
}

/* ---- reserve and compact ----------------------------------------------------------------------------------------- */

NODEDB_VAMANA_API nodedb_status nodedb_vamana_reserve(nodedb_vamana *index, uint64_t capacity, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    return status != NODEDB_OK ? status : nodedb_vamana__grow(index, capacity, err);
}

/* Copies live slots into `to`, in order. `moved_to` has room for old->slots. */
static void nodedb_vamana__move_together(const nodedb_vamana *index, const nodedb_vamana__arrays *old,
                                         nodedb_vamana__arrays *to, uint32_t *moved_to) {
    for (uint32_t slot = 0; slot < old->slots; slot++)
        moved_to[slot] = old->states[slot] == NODEDB_VAMANA__LIVE ? to->slots++ : NODEDB_VAMANA__NONE;
    for (uint32_t slot = 0; slot < old->slots; slot++) {
        uint32_t at = moved_to[slot], *row;
        const uint32_t *from = nodedb_vamana__row(index, old, slot);
        if (at == NODEDB_VAMANA__NONE) continue;
        memcpy(nodedb_vamana__vector(index, to, at), nodedb_vamana__vector(index, old, slot), index->stride);
        row = nodedb_vamana__row(index, to, at), to->heads[at] = old->heads[slot];
        if (old->parents[slot] != NODEDB_VAMANA__NONE) to->parents[at] = moved_to[old->parents[slot]];
        for (uint32_t i = 0; i < index->degree && from[i] != NODEDB_VAMANA__NONE; i++) row[i] = moved_to[from[i]];
        to->ids[at] = old->ids[slot];
        if (to->norms != NULL) to->norms[at] = old->norms[slot], nodedb_vamana__note_zeros(index, to, old->norms[slot]);
        if (to->codes != NULL)
            memcpy(to->codes + (size_t)at * to->coder->stride, old->codes + (size_t)slot * to->coder->stride,
                   to->coder->stride);
        to->states[at] = NODEDB_VAMANA__LIVE;
        if (!nodedb_vamana__table_add(to, at)) assert(false);
    }
    if (old->entry != NODEDB_VAMANA__NONE) to->entry = moved_to[old->entry];
    for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX && old->starts[i] != NODEDB_VAMANA__NONE; i++)
        to->starts[i] = moved_to[old->starts[i]];
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_compact(nodedb_vamana *index, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_unsaved(index, err);
    nodedb_vamana__arrays *old, *a;
    uint32_t *moved_to = NULL;
    size_t bytes;
    if (status != NODEDB_OK) return status;
    while (nodedb_vamana_maintain(index, NODEDB_VAMANA__FREE_PER_NODE)) /* until no row holds a removed node */
        if (index->sweep == NODEDB_VAMANA__WAITING) (void)sched_yield();
    old = index->arrays;
    bytes = ((size_t)old->slots + 1) * sizeof *moved_to;
    moved_to = (uint32_t *)nodedb__alloc(&index->allocator, bytes, NODEDB_CACHE_LINE_BYTES);
    if (moved_to == NULL)
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to compact %u slots", (unsigned)old->slots);
    a = nodedb_vamana__alloc_arrays(
        index, index->live < NODEDB_VAMANA__FIRST_CAPACITY ? NODEDB_VAMANA__FIRST_CAPACITY : index->live, old->coder,
        err);
    if (a != NULL) {
        nodedb_vamana__move_together(index, old, a, moved_to);
        index->first_free = NODEDB_VAMANA__NONE;
        nodedb_vamana__publish(index, a);
        nodedb_vamana__await_readers(index);
        nodedb_vamana__release_arrays(index, old);
    }
    nodedb__release(&index->allocator, moved_to, bytes);
    return a != NULL ? NODEDB_OK : err != NULL ? err->status : NODEDB_ERR_NO_MEMORY;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* Sets of slots. */
static bool nodedb_vamana__bit(const uint8_t *bits, uint32_t slot) { return (bits[slot / 8] >> slot % 8 & 1) != 0; }
static void nodedb_vamana__set_bit(uint8_t *bits, uint32_t slot) { bits[slot / 8] |= (uint8_t)(1u << slot % 8); }

NODEDB_VAMANA_API uint64_t nodedb_vamana_count(const nodedb_vamana *index) {
    return index == NULL ? 0 : nodedb__load_relaxed(&index->live);
}
NODEDB_VAMANA_API uint32_t nodedb_vamana_dim(const nodedb_vamana *index) { return index == NULL ? 0 : index->dim; }
NODEDB_VAMANA_API nodedb_vamana_metric nodedb_vamana_metric_of(const nodedb_vamana *index) {
    return index == NULL ? NODEDB_VAMANA_L2 : index->metric;
}
NODEDB_VAMANA_API nodedb_vamana_type nodedb_vamana_type_of(const nodedb_vamana *index) {
    return index == NULL ? NODEDB_VAMANA_F32 : index->type;
}
NODEDB_VAMANA_API const char *nodedb_vamana_kernel(const nodedb_vamana *index) {
    return index == NULL ? "" : index->kernels->one.name;
}
NODEDB_VAMANA_API uint64_t nodedb_vamana_memory_bytes(const nodedb_vamana *index) {
    return index == NULL ? 0 : nodedb__load_relaxed(&index->bytes) + nodedb__load_relaxed(&index->writer_bytes);
}

/* Counts live slots that are not reachable from the entry, breadth first. The caller is counted in as a reader. */
static uint64_t nodedb_vamana__count_unreachable(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                                 uint32_t slots, nodedb_vamana__read_errors *errors) {
    size_t bits = (size_t)slots / 8 + 1, bytes = bits + (size_t)slots * sizeof(uint32_t) + sizeof(uint32_t), head = 0,
           tail = 0;
    uint32_t *queue = (uint32_t *)nodedb__alloc_zero(&index->allocator, bytes, sizeof(void *)), slot, i;
    uint8_t *reached = (uint8_t *)(queue + slots + 1);
    uint64_t lost = 0;
    if (queue == NULL) return UINT64_MAX;
    slot = nodedb__load_acquire(&a->entry);
    if (slot < slots) queue[tail++] = slot, nodedb_vamana__set_bit(reached, slot);
    while (head < tail) {
        const uint32_t *row = nodedb_vamana__row(index, a, queue[head]);
        if (nodedb_vamana__is_on_disk(index) && !nodedb_vamana__have_row(index, queue[head], errors))
            row = NULL;
        for (i = 0, head++; row != NULL && i < index->degree; i++) {
            slot = nodedb__load_acquire(&row[i]);
            if (slot >= slots) break;
            if (nodedb_vamana__bit(reached, slot)) continue;
            queue[tail++] = slot, nodedb_vamana__set_bit(reached, slot);
        }
    }
    for (slot = 0; slot < slots; slot++) {
        if (nodedb_vamana__is_on_disk(index) && !nodedb_vamana__have_state(index, slot, errors)) continue;
        lost += nodedb_vamana__state(a, slot) == NODEDB_VAMANA__LIVE && !nodedb_vamana__bit(reached, slot);
    }
    nodedb__release(&index->allocator, queue, bytes);
    return lost;
}

NODEDB_VAMANA_API void nodedb_vamana_inspect(const nodedb_vamana *index, nodedb_vamana_info *info) {
    const nodedb_vamana__arrays *a;
    uint32_t slot, slots, parity, entry, i;
    nodedb_vamana__read_errors errors;
    if (info == NULL) return;
    memset(info, 0, sizeof *info);
    if (index == NULL) return;
    a = nodedb_vamana__enter(index, 0, &parity);
    slots = nodedb__load_acquire(&a->slots), entry = nodedb__load_acquire(&a->entry);
    info->live = nodedb__load_relaxed(&index->live), info->removed = nodedb__load_relaxed(&index->removed);
    info->capacity = a->capacity;
    info->free = slots < info->live + info->removed ? 0 : slots - info->live - info->removed;
    info->code_bits = a->coder == NULL ? 0 : a->coder->bits;
    info->code_bytes = a->coder == NULL ? 0 : a->coder->stride;
    info->beam_build = nodedb__load_relaxed(&index->beam_now);
    if (nodedb_vamana__is_on_disk(index)) info->damaged_blocks = nodedb_vamana__damaged_blocks(index);
    memset(&errors, 0, sizeof errors);
    for (slot = 0; slot < slots && a->rows != NULL; slot++) {
        const uint32_t *row = nodedb_vamana__row(index, a, slot);
        if (nodedb_vamana__is_on_disk(index) && (!nodedb_vamana__have_state(index, slot, &errors) ||
                                    !nodedb_vamana__have_row(index, slot, &errors)))
            continue;
        if (nodedb_vamana__state(a, slot) != NODEDB_VAMANA__LIVE) continue;
        for (i = 0; i < index->degree && nodedb__load_acquire(&row[i]) != NODEDB_VAMANA__NONE; i++) info->mean_degree++;
    }
    if (info->live > 0) info->mean_degree /= (double)info->live;
    if (a->rows != NULL) info->unreachable = nodedb_vamana__count_unreachable(index, a, slots, &errors);
    if (entry != NODEDB_VAMANA__NONE &&
        (!nodedb_vamana__is_on_disk(index) || nodedb_vamana__have_state(index, entry, &errors)))
        info->entry_id = a->ids[entry];
    nodedb_vamana__leave(index, 0, parity);
}

/* The live slot of an id, or NONE. A build enters ids before their vectors. The caller is counted in as a reader. */
static uint32_t nodedb_vamana__find_live(const nodedb_vamana__arrays *a, uint64_t id) {
    uint32_t slot = nodedb_vamana__find(a, id);
    if (slot == NODEDB_VAMANA__NONE || nodedb_vamana__state(a, slot) != NODEDB_VAMANA__LIVE) return NODEDB_VAMANA__NONE;
    return slot;
}

NODEDB_VAMANA_API bool nodedb_vamana_contains(const nodedb_vamana *index, uint64_t id) {
    uint32_t parity, slot;
    if (index == NULL) return false;
    if (nodedb_vamana__is_on_disk(index)) {
        nodedb_vamana__read_errors errors;
        memset(&errors, 0, sizeof errors);
        return nodedb_vamana__find_on_disk(index, id, &errors) != NODEDB_VAMANA__NONE;
    }
    slot = nodedb_vamana__find_live(nodedb_vamana__enter(index, 0, &parity), id);
    nodedb_vamana__leave(index, 0, parity);
    return slot != NODEDB_VAMANA__NONE;
}

NODEDB_VAMANA_API bool nodedb_vamana_next(const nodedb_vamana *index, uint64_t *cursor, uint64_t *id) {
    const nodedb_vamana__arrays *a;
    uint32_t parity, slots;
    bool found = false;
    nodedb_vamana__read_errors errors;
    if (index == NULL || cursor == NULL || id == NULL) return false;
    memset(&errors, 0, sizeof errors);
    a = nodedb_vamana__enter(index, 0, &parity);
    for (slots = nodedb__load_acquire(&a->slots); *cursor < slots && !found; ++*cursor) {
        if (!nodedb_vamana__have_state(index, (uint32_t)*cursor, &errors)) {
            if (errors.failed != NODEDB_OK) break;
            continue;
        }
        found = nodedb_vamana__state(a, (uint32_t)*cursor) == NODEDB_VAMANA__LIVE;
        if (found) *id = a->ids[*cursor];
    }
    nodedb_vamana__leave(index, 0, parity);
    return found;
}

static void nodedb_vamana__to_floats(const nodedb_vamana *index, const uint8_t *vector, float norm, float *out) {
    float factor = index->type == NODEDB_VAMANA_F32 && index->metric == NODEDB_VAMANA_COSINE ? norm : 1;
    uint32_t i;
    for (i = 0; i < index->dim; i++) out[i] = factor * (float)nodedb_vamana__component(index, vector, i);
}

/* Writes a stored vector out: as it is, or as floats. */
static void nodedb_vamana__copy_out(const nodedb_vamana *index, const void *vector, float norm, void *out,
                                    bool stored) {
    if (stored) memcpy(out, vector, index->vector_bytes);
    else nodedb_vamana__to_floats(index, (const uint8_t *)vector, norm, (float *)out);
}

static nodedb_status nodedb_vamana__get(const nodedb_vamana *index, uint64_t id, void *out, bool stored,
                                        nodedb_error *err) {
    const nodedb_vamana__arrays *a;
    uint32_t parity, slot;
    if (index == NULL || out == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "index or out is NULL");
    if (nodedb_vamana__is_on_disk(index)) return nodedb_vamana__get_from_disk(index, id, out, stored, err);
    a = nodedb_vamana__enter(index, 0, &parity);
    slot = nodedb_vamana__find_live(a, id);
    if (slot != NODEDB_VAMANA__NONE)
        nodedb_vamana__copy_out(index, nodedb_vamana__vector(index, a, slot), nodedb_vamana__norm(a, slot), out,
                                stored);
    nodedb_vamana__leave(index, 0, parity);
    return slot != NODEDB_VAMANA__NONE ? NODEDB_OK : nodedb_vamana__no_such_id(id, err);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_get(const nodedb_vamana *index, uint64_t id, float *out,
                                                  nodedb_error *err) {
    return nodedb_vamana__get(index, id, out, false, err);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_get_stored(const nodedb_vamana *index, uint64_t id, void *out,
                                                         nodedb_error *err) {
    return nodedb_vamana__get(index, id, out, true, err);
}

/* The stored vector of an id, for a searcher that is counted in as a reader; NULL and the reason. On disk it is valid
 * until the searcher reads again. */
static const void *nodedb_vamana__vector_of_id(nodedb_vamana_searcher *s, uint64_t id, nodedb_error *err) {
    uint32_t slot;
    if (nodedb_vamana__is_on_disk(s->index)) return nodedb_vamana__fetch_id(s, id, err);
    slot = nodedb_vamana__find_live(s->arrays, id);
    if (slot != NODEDB_VAMANA__NONE) return nodedb_vamana__vector(s->index, s->arrays, slot);
    (void)nodedb_vamana__no_such_id(id, err);
    return NULL;
}

/* ===================================================================================================================
 * CODES: short codes to walk on
 *
 * A walk needs only to know which of many vectors are nearer. So it reads codes of 4 or 8 bits for each component, one
 * cache line where the vector has two to dozens, and the best of what it found are then measured exactly.
 *
 * A vector (COSINE: of length 1) has the mean of all subtracted and is turned by a fixed random rotation. Then its
 * components are alike: none is large and all vary as much, so one step serves all of them. (RaBitQ, Gao and Long,
 * SIGMOD 2024, does so with one bit; here there are 4 or 8.) A code is the number of the nearest of 16 or 256 values,
 * `step` apart, around zero. The rotation is one of signs and Walsh-Hadamard transforms, O(dim log dim).
 * ================================================================================================================ */

#define NODEDB_VAMANA__CODE_AGAIN 8u           /* they are remade when there are 8 times as many vectors ... */
#define NODEDB_VAMANA__CLIPPED_SHARE 16u       /* ... or when they clip 1/16 of the vectors inserted since */
#define NODEDB_VAMANA__SAMPLE_MIN 64u          /* vectors from which a coder learns the mean, at least ... */
#define NODEDB_VAMANA__SAMPLE_MAX 4096u
#define NODEDB_VAMANA__SAMPLE_FLOATS 4194304u  /* ... and at most, of no more components than these in all */
#define NODEDB_VAMANA__SAMPLE_STEP 512u        /* of them, those by which the step is chosen */
#define NODEDB_VAMANA__MEAN_PER_CHANGE 64u     /* vectors that each insert adds to the mean ... */
#define NODEDB_VAMANA__STEP_PER_CHANGE 8u      /* ... or tries for the step; each costs as much as four codes */
#define NODEDB_VAMANA__ROUNDING 0.2887f        /* 1 / sqrt(12): standard deviation of rounding to whole steps */
#define NODEDB_VAMANA__QUERY4 8                /* steps of a query's component for one step of a 4-bit code */
#define NODEDB_VAMANA__JUDGES 64u              /* nodes whose surroundings show by how much codes displace */
#define NODEDB_VAMANA__JUDGES_PER_CHANGE 4u    /* each costs about as much as an insert */
#define NODEDB_VAMANA__JUDGE_BEAM 128u         /* entries of the beam around such a node; at least beam_build */
#define NODEDB_VAMANA__JUDGE_MISSES 200u       /* 1/200 of the nearest may be displaced by more than the slack */
#define NODEDB_VAMANA__SLACK_GOOD 20u          /* AUTO takes codes with a slack of no more ... */
#define NODEDB_VAMANA__OFTEN_GOOD 8u           /* ... that displace 9 of 10 of the nearest by no more: */
#define NODEDB_VAMANA__OFTEN_MISSES 10u        /* a cluster that they blur is small now and may grow */
#define NODEDB_VAMANA__DRIFT_WINDOW 2560u      /* nearest of new nodes after which the codes in use are judged ... */
#define NODEDB_VAMANA__DRIFT_MISSES 25u        /* ... and remade if 1/25 were displaced by more than the slack */

/* ---- a vector and its code --------------------------------------------------------------------------------------- */

/* Rotates `dim` components. If dim is not a power of two, the transform takes the first and the last 2^n components in
 * turn, which overlap. */
static void nodedb_vamana__turn(const nodedb_vamana *index, float *x) {
    uint32_t part = 1, rounds;
    while (part <= index->dim / 2) part *= 2;
    rounds = part == index->dim ? 2 : 4;
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t from = round % 2 == 0 ? 0 : index->dim - part;
        index->kernels->turn_part(x + from, part, nodedb_mix64(index->dim + ((uint64_t)round << 32)));
    }
}

/* The factor that gives a stored vector length 1; for L2, which keeps lengths, 1. `norm` is as in the index's norms. */
static float nodedb_vamana__to_length_1(const nodedb_vamana *index, float norm) {
    if (index->metric == NODEDB_VAMANA_IP) return norm > 0 ? 1 / sqrtf(norm) : 0;
    return index->metric == NODEDB_VAMANA_COSINE && index->type != NODEDB_VAMANA_F32 ? norm : 1;
}

/* A stored vector as floats: of length 1, except for L2. */
static void nodedb_vamana__as_floats(const nodedb_vamana *index, const uint8_t *vector, float norm, float *to) {
    float factor = nodedb_vamana__to_length_1(index, norm);
    for (uint32_t i = 0; i < index->dim; i++) to[i] = factor * (float)nodedb_vamana__component(index, vector, i);
}

static void nodedb_vamana__put_code(const nodedb_vamana__coder *c, uint8_t *code, size_t i, uint32_t value) {
    if (c->bits == 8) code[i] = (uint8_t)value;
    else code[i / 64 * 32 + i % 32] |= (uint8_t)(value << (i % 64 < 32 ? 0 : 4));
}

/* The number of the nearest of 2^bits values. */
NODEDB_VAMANA__INLINE uint32_t nodedb_vamana__nearest_value(float x, float step, uint32_t bits) {
    float half = bits == 4 ? 8.0f : 128.0f, at = x / step + half; /* value v stands for (v - half + 1/2) step */
    return !(at >= 0) ? 0 : at >= 2 * half ? (uint32_t)(2 * half) - 1 : (uint32_t)at;
}

/* Writes the code of a stored vector. `turned` has room for dim floats. False: the code clips it, as over an eighth of
 * its components lie beyond the values (with 4 bits, 0.7% of normally distributed components do). */
static bool nodedb_vamana__encode(const nodedb_vamana *index, const nodedb_vamana__coder *c, const uint8_t *vector,
                                  float norm, float *turned, uint8_t *code) {
    float most = c->step * (c->bits == 4 ? 8.0f : 128.0f);
    uint32_t beyond = 0;
    nodedb_vamana__as_floats(index, vector, norm, turned);
    for (uint32_t i = 0; i < index->dim; i++) turned[i] -= c->mean[i];
    nodedb_vamana__turn(index, turned);
    memset(code, 0, c->stride);
    for (uint32_t i = 0; i < index->dim; i++) {
        nodedb_vamana__put_code(c, code, i, nodedb_vamana__nearest_value(turned[i], c->step, c->bits));
        beyond += fabsf(turned[i]) > most ? 1 : 0;
    }
    return beyond <= index->dim / 8;
}

static int8_t nodedb_vamana__to_i8(float x) {
    return (int8_t)(x <= -128 ? -128 : x >= 127 ? 127 : x < 0 ? x - 0.5f : x + 0.5f);
}

/* Makes s->code_query from a stored or prepared vector, and the target that measures codes.
 *   L2 and COSINE: the query is in the units of the codes, finer (4 bits) or the same (8 bits), and the kernels give |q
 * - x|^2. COSINE is half of that, except for vectors of zeros, whose distance is 1.
 *   IP: a code is of the vector's direction, less the mean direction m, so <q, x> = |x| (<q, m> + <q, code>). The query
 * is rotated, with its largest component as 127. `shift` is <q, m> in the units of the kernel, plus what centres the
 * values of a code.
 *   The error: a component is off by up to half a step, uniformly. So a product with q is off by |q| |code| steps /
 * sqrt(12), and |q - x|^2 by 2 |q - x| times as much. A query of 8 bits adds to that. */
static nodedb_vamana__target nodedb_vamana__code_target(nodedb_vamana_searcher *s, const uint8_t *vector, float norm) {
    const nodedb_vamana *index = s->index;
    const nodedb_vamana__coder *c = s->arrays->coder;
    bool ip = index->metric == NODEDB_VAMANA_IP, cosine = index->metric == NODEDB_VAMANA_COSINE, four = c->bits == 4;
    int8_t *q = (int8_t *)(void *)s->code_query;
    nodedb_vamana__target target;
    float most = 0, factor;
    double along = 0, sum = 0;
    memset(&target, 0, sizeof target);
    target.arrays = s->arrays, target.vector = s->code_query;
    target.measure = ip ? (four ? NODEDB_VAMANA__CODE4_IP : NODEDB_VAMANA__CODE8_IP)
                        : (four ? NODEDB_VAMANA__CODE4_L2 : NODEDB_VAMANA__CODE8_L2);
    target.constant = c->step * c->step / (four ? NODEDB_VAMANA__QUERY4 / 2 : 1);
    if (cosine) target.constant /= 2; /* |q - x|^2 = 2 - 2 cos */
    nodedb_vamana__as_floats(index, vector, norm, s->turned);
    for (uint32_t i = 0; i < index->dim; i++) {
        if (ip) along += (double)s->turned[i] * (double)c->mean[i];
        else s->turned[i] -= c->mean[i];
    }
    nodedb_vamana__turn(index, s->turned);
    if (ip) {
        for (uint32_t i = 0; i < index->dim; i++) most = fabsf(s->turned[i]) > most ? fabsf(s->turned[i]) : most;
        factor = most > 0 ? 127 / most : 0;
        if (!nodedb_vamana__is_finite(factor)) factor = 0;
        for (uint32_t i = 0; i < index->dim; i++) q[i] = nodedb_vamana__to_i8(s->turned[i] * factor), sum += q[i];
        target.constant = factor > 0 ? sqrtf(norm) * c->step / factor : 0;
        target.shift = (float)(along * (double)factor / (double)c->step - sum * (four ? 7.5 : 127.5));
    } else if (four) { /* value v stands for v - 7.5 steps */
        factor = NODEDB_VAMANA__QUERY4 / c->step;
        for (uint32_t i = 0; i < index->dim; i++) {
            q[i] = nodedb_vamana__to_i8(s->turned[i] * factor + 7.5f * NODEDB_VAMANA__QUERY4);
            sum += (double)q[i] * q[i] / (2 * NODEDB_VAMANA__QUERY4); /* what the kernel leaves out */
        }
    } else {
        for (uint32_t i = 0; i < index->dim; i++)
            s->code_query[i] = (uint8_t)nodedb_vamana__nearest_value(s->turned[i], c->step, 8);
    }
    target.zeros = !ip && s->arrays->norms != NULL && nodedb__load_relaxed(&s->arrays->zeros);
    target.zero = (float)(1 / (double)target.constant - sum);
    if (!ip) /* rounding adds the squares of the errors to a squared distance */
        target.offset = (float)((double)target.constant * sum - (four ? 1 : 2) * (double)index->dim * (double)c->step *
                                                                    (double)c->step / (cosine ? 24 : 12));
    target.spread = c->step * NODEDB_VAMANA__ROUNDING * (four ? 1 : 1.5f);
    if (ip) target.spread *= sqrtf(norm);
    else if (!cosine) target.spread *= 2;
    return target;
}

/* ---- making a coder ---------------------------------------------------------------------------------------------- */

/* Bytes from one code to the next, in memory and in a file. */
static size_t nodedb_vamana__code_stride(uint32_t dim, uint32_t bits) {
    return bits == 4 ? nodedb_vamana__padded(((size_t)dim + 63) / 64 * 32) : bits == 8 ? nodedb_vamana__padded(dim) : 0;
}

static nodedb_vamana__coder *nodedb_vamana__new_coder(const nodedb_vamana *index, uint32_t bits) {
    nodedb_vamana__coder *c = (nodedb_vamana__coder *)nodedb__alloc_zero(
        &index->allocator, nodedb_vamana__coder_bytes(index), sizeof(void *));
    if (c == NULL) return NULL;
    c->mean = (float *)(void *)(c + 1);
    c->bits = bits;
    c->components = bits == 4 ? ((size_t)index->dim + 63) / 64 * 64 : nodedb_vamana__padded(index->dim);
    c->stride = nodedb_vamana__code_stride(index->dim, bits);
    return c;
}

/* True if a walk on codes of so many bits touches less memory than one on vectors. */
static bool nodedb_vamana__codes_gain(const nodedb_vamana *index, uint32_t bits) {
    size_t bytes = bits == 4 ? ((size_t)index->dim + 63) / 64 * 32 : index->dim, line = NODEDB_CACHE_LINE_BYTES;
    return (bytes + line - 1) / line < (index->stride + line - 1) / line;
}

static uint32_t nodedb_vamana__sample_size(const nodedb_vamana *index, uint64_t n) {
    uint64_t most = NODEDB_VAMANA__SAMPLE_FLOATS / index->dim;
    if (most < NODEDB_VAMANA__SAMPLE_MIN) most = NODEDB_VAMANA__SAMPLE_MIN;
    if (most > NODEDB_VAMANA__SAMPLE_MAX) most = NODEDB_VAMANA__SAMPLE_MAX;
    return (uint32_t)(n < most ? n : most);
}

/* How many of the sample choose the step. */
static uint32_t nodedb_vamana__step_sample_size(const nodedb_vamana *index, uint64_t n) {
    uint32_t sample = nodedb_vamana__sample_size(index, n);
    return sample < NODEDB_VAMANA__SAMPLE_STEP ? sample : NODEDB_VAMANA__SAMPLE_STEP;
}

static bool nodedb_vamana__is_trained(const nodedb_vamana__coder *c) { return c->step > 0; }

/* Updates the mean, and the squared distances from it, with `n` more vectors. It adds up differences from the mean so
 * far, so that components that are far from zero and vary little lose no digits (Chan, Golub and LeVeque, 1979). */
static void nodedb_vamana__train_mean(const nodedb_vamana *index, nodedb_vamana__coder *c, nodedb_vamana__training *t,
                                      const uint32_t *slots, uint32_t n) {
    const nodedb_vamana__arrays *a = index->arrays;
    const uint8_t *vectors[NODEDB_VAMANA__MEAN_PER_CHANGE];
    float factors[NODEDB_VAMANA__MEAN_PER_CHANGE];
    if (n == 0) return;
    for (uint32_t i = 0; i < n; i++) {
        vectors[i] = nodedb_vamana__vector(index, a, slots[i]);
        factors[i] = nodedb_vamana__to_length_1(index, nodedb_vamana__norm(a, slots[i]));
    }
    if (t->sampled == 0) nodedb_vamana__as_floats(index, vectors[0], nodedb_vamana__norm(a, slots[0]),
                                                  c->mean);
    for (uint32_t j = 0; j < index->dim; j++) {
        double sum = 0, squares = 0;
        for (uint32_t i = 0; i < n; i++) {
            float x = factors[i] * (float)nodedb_vamana__component(index, vectors[i], j);
            double off = (double)x - (double)c->mean[j];
            sum += off, squares += off * off;
        }
        c->mean[j] = (float)((double)c->mean[j] + sum / ((double)t->sampled + n));
        squares -= sum * sum / ((double)t->sampled + n);
        t->squares += squares > 0 ? squares : 0;
    }
    t->sampled += n;
}

/* The i-th step to try: first the best for normally distributed components (Max, 1960), then wider ones, for
 * long-tailed data. 0: all vectors are the same. */
static float nodedb_vamana__step_of(const nodedb_vamana *index, const nodedb_vamana__coder *c,
                                    const nodedb_vamana__training *t, uint32_t i) {
    static const float wider[NODEDB_VAMANA__STEPS] = {1, 1.25f, 1.6f, 2, 2.5f, 3.2f, 4, 5, 6.4f, 8};
    double sigma = sqrt(t->squares / ((double)t->sampled * index->dim));
    return sigma > 1e-30 ? (float)(sigma * (double)((c->bits == 4 ? 0.335f : 0.0308f) * wider[i])) : 0;
}

/* Adds up the errors of the codes of `n` vectors with each step. `turned` has room for one vector. */
static void nodedb_vamana__train_step(const nodedb_vamana *index, const nodedb_vamana__coder *c,
                                      nodedb_vamana__training *t, const uint32_t *slots, uint32_t n, float *turned) {
    const nodedb_vamana__arrays *a = index->arrays;
    float half = c->bits == 4 ? 7.5f : 127.5f;
    for (uint32_t i = 0; i < n; i++) {
        nodedb_vamana__as_floats(index, nodedb_vamana__vector(index, a, slots[i]),
                                 nodedb_vamana__norm(a, slots[i]), turned);
        for (uint32_t j = 0; j < index->dim; j++) turned[j] -= c->mean[j];
        nodedb_vamana__turn(index, turned);
        for (uint32_t w = 0; w < NODEDB_VAMANA__STEPS; w++) {
            float step = nodedb_vamana__step_of(index, c, t, w);
            double error = 0;
            for (uint32_t j = 0; j < index->dim; j++) {
                float value = ((float)nodedb_vamana__nearest_value(turned[j], step, c->bits) - half) * step;
                error += (double)(turned[j] - value) * (double)(turned[j] - value);
            }
            t->errors[w] += error;
        }
    }
}

/* One slice of a coder's training; the last one sets the step. The slices are the same whether they run at once or one
 * with each insert. There must be a live vector. */
static void nodedb_vamana__train_slice(const nodedb_vamana *index, nodedb_vamana__coder *c, nodedb_vamana__training *t,
                                       float *turned) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t mean_of = nodedb_vamana__sample_size(index, t->slots), n = 0, best = 0;
    uint32_t step_of = nodedb_vamana__step_sample_size(index, t->slots), slots[NODEDB_VAMANA__MEAN_PER_CHANGE];
    bool mean = t->at < mean_of;
    uint32_t end = mean ? mean_of : mean_of + step_of;
    uint32_t slice = mean ? NODEDB_VAMANA__MEAN_PER_CHANGE : NODEDB_VAMANA__STEP_PER_CHANGE;
    assert(!nodedb_vamana__is_trained(c) && t->slots <= a->slots && a->entry != NODEDB_VAMANA__NONE);
    for (uint32_t i = 0; i < slice && t->at < end; i++, t->at++) {
        uint64_t at = mean ? t->at : t->at - mean_of;
        uint32_t slot = (uint32_t)(at * t->slots / (mean ? mean_of : step_of));
        if (a->states[slot] == NODEDB_VAMANA__LIVE) slots[n++] = slot;
    }
    if (mean) nodedb_vamana__train_mean(index, c, t, slots, n);
    else nodedb_vamana__train_step(index, c, t, slots, n, turned);
    if (t->at < end) return;
    if (t->sampled == 0) nodedb_vamana__train_mean(index, c, t, &a->entry, 1); /* the sample had no live vector */
    if (mean && nodedb_vamana__step_of(index, c, t, 0) > 0) return;
    for (uint32_t i = 1; i < NODEDB_VAMANA__STEPS && !mean; i++)
        if (t->errors[i] < t->errors[best]) best = i;
    c->step = mean ? 1 : nodedb_vamana__step_of(index, c, t, best);
}

static void nodedb_vamana__begin_training(const nodedb_vamana *index, nodedb_vamana__training *t) {
    memset(t, 0, sizeof *t);
    t->slots = index->arrays->slots;
}

/* A coder, trained at once. NULL: no memory, or no vectors. */
static nodedb_vamana__coder *nodedb_vamana__train(const nodedb_vamana *index, uint32_t bits) {
    nodedb_vamana__coder *c = index->live == 0 ? NULL : nodedb_vamana__new_coder(index, bits);
    nodedb_vamana__training t;
    nodedb_vamana__begin_training(index, &t);
    while (c != NULL && !nodedb_vamana__is_trained(c)) nodedb_vamana__train_slice(index, c, &t, index->writer->turned);
    return c;
}

static bool nodedb_vamana__encode_slot(const nodedb_vamana *index, const nodedb_vamana__arrays *a,
                                       const nodedb_vamana__coder *c, uint8_t *codes, float *turned, uint32_t slot) {
    return nodedb_vamana__encode(index, c, nodedb_vamana__vector(index, a, slot),
                                 nodedb_vamana__norm(a, slot), turned, codes + (size_t)slot * c->stride);
}

/* ---- how much codes displace ------------------------------------------------------------------------------------- */

/* After a walk on codes: the `n` candidates of a new node, the nearest by code first, have exact distances, so they
 * show by how much codes displace its nearest now. The slack adapts, as the number of vectors grows. If it becomes too
 * large, or too many are displaced by more, the codes are remade. */
static void nodedb_vamana__watch_codes(nodedb_vamana *index, uint32_t slot, const nodedb_vamana__near *c, uint32_t n) {
    uint32_t *stored = &index->arrays->coder->slack, slack = *stored;
    uint32_t nearest[NODEDB_VAMANA__JUDGE_NEAREST], count = 0, missed = 0, same = 0, j;
    if (n <= NODEDB_VAMANA__JUDGE_NEAREST + slack) return;
    for (uint32_t i = 0; i < n; i++) {
        if (nodedb_vamana__is_same(index, slot, &c[i])) {
            same++;
            continue;
        }
        if (count == NODEDB_VAMANA__JUDGE_NEAREST && c[i].distance >= c[nearest[count - 1]].distance) continue;
        if (count < NODEDB_VAMANA__JUDGE_NEAREST) count++;
        for (j = count - 1; j > 0 && c[nearest[j - 1]].distance > c[i].distance; j--) nearest[j] = nearest[j - 1];
        nearest[j] = i;
    }
    for (uint32_t i = 0; i < count; i++) missed += nearest[i] >= same + NODEDB_VAMANA__JUDGE_NEAREST + slack;
    index->code_asked += count, index->code_missed += missed;
    if (index->code_asked < NODEDB_VAMANA__DRIFT_WINDOW) return;
    if (index->code_missed > index->code_asked / NODEDB_VAMANA__DRIFT_MISSES || slack > NODEDB_VAMANA__SLACK_GOOD + 8)
        index->code_clipped = UINT32_MAX / 2; /* more than any share: due now */
    if (index->code_missed > index->code_asked / NODEDB_VAMANA__JUDGE_MISSES && slack < NODEDB_VAMANA__SLACK_MAX)
        nodedb__store_relaxed(stored, slack + 1 + slack / 8 < NODEDB_VAMANA__SLACK_MAX ? slack + 1 + slack / 8
                                                                                       : NODEDB_VAMANA__SLACK_MAX);
    else if (index->code_missed < index->code_asked / NODEDB_VAMANA__JUDGE_MISSES / 4 && slack > 0)
        nodedb__store_relaxed(stored, slack - 1);
    index->code_asked = index->code_missed = 0;
}

/* Entries of the beam that judges codes. It does not adapt as the beam that finds neighbours does: among 512 nearest a
 * code displaces by more places than it does in the beams of searches. */
static uint32_t nodedb_vamana__judge_beam(const nodedb_vamana *index) {
    return index->beam_build > NODEDB_VAMANA__JUDGE_BEAM ? index->beam_build : NODEDB_VAMANA__JUDGE_BEAM;
}

/* Counts in index->displaced by how many places the codes of `coded` displace the ten vectors nearest to a slot, among
 * all that a walk to it meets. Vectors equal to the slot's do not count, as codes cannot displace them. Ties by code
 * do, as their order is random. */
static void nodedb_vamana__judge(nodedb_vamana *index, const nodedb_vamana__arrays *coded, nodedb_vamana_searcher *s,
                                 uint32_t slot) {
    nodedb_vamana__target exact = nodedb_vamana__slot_target(index, coded, slot), code;
    uint32_t j, n = 0, nearer, before;
    float *far = s->distances, *by_code;
    if (coded->states[slot] != NODEDB_VAMANA__LIVE) return;
    s->arrays = coded;
    nodedb_vamana__walk(s, &exact, nodedb_vamana__judge_beam(index));
    for (uint32_t i = 0; i < s->beam_count; i++)
        if (coded->states[s->beam[i].slot] == NODEDB_VAMANA__LIVE && !nodedb_vamana__is_same(index, slot, &s->beam[i]))
            s->slots[n] = s->beam[i].slot, far[n++] = s->beam[i].distance;
    if (n <= 2 * NODEDB_VAMANA__JUDGE_NEAREST || far[0] == far[n - 1]) return; /* this node shows nothing */
    code = nodedb_vamana__code_target(s, (const uint8_t *)exact.vector, nodedb_vamana__norm(coded, slot));
    by_code = far + n;
    nodedb_vamana__measure_many(index, &code, s->slots, n, by_code);
    for (uint32_t i = 0; i < n; i++) {
        for (j = 0, nearer = 0, before = 0; j < n; j++)
            nearer += far[j] < far[i], before += by_code[j] <= by_code[i] && far[j] != far[i];
        if (nearer >= NODEDB_VAMANA__JUDGE_NEAREST) continue;
        before = before < NODEDB_VAMANA__JUDGE_NEAREST ? 0 : before - NODEDB_VAMANA__JUDGE_NEAREST + 1;
        index->displaced[before < NODEDB_VAMANA__SLACK_MAX ? before : NODEDB_VAMANA__SLACK_MAX]++;
    }
}

/* The slack: how many more of the nearest by code must be measured to find all but one in `misses` of the nearest. */
static uint32_t nodedb_vamana__slack(const nodedb_vamana *index, uint32_t misses) {
    uint32_t asked = 0, missed = 0, slack;
    for (uint32_t i = 0; i <= NODEDB_VAMANA__SLACK_MAX; i++) asked += index->displaced[i];
    for (slack = NODEDB_VAMANA__SLACK_MAX; slack > 0; slack--) {
        missed += index->displaced[slack];
        if (missed > asked / misses) break;
    }
    return asked == 0 ? NODEDB_VAMANA__SLACK_MAX : slack; /* equal vectors show nothing */
}

/* ---- making all codes again -------------------------------------------------------------------------------------- */

/* A little with each change, or all at once in a build. The new codes replace the index's when the last is made, and
 * only if they are good enough: if they do not blur the distances between neighbours much. Data whose neighbours are
 * very near, compared with how far they all spread, need finer codes or none. */

/* Starts to make codes of `bits`. Without memory the index keeps what it has and tries again when it has grown by an
 * eighth, as trying with every change costs too much. */
static void nodedb_vamana__begin_codes(nodedb_vamana *index, uint32_t bits) {
    nodedb_vamana__drop_recoding(index);
    memset(index->displaced, 0, sizeof index->displaced);
    index->judge_at = 0;
    nodedb_vamana__begin_training(index, &index->training);
    index->recoder = index->live == 0 ? NULL : nodedb_vamana__new_coder(index, bits);
    if (index->recoder != NULL) {
        nodedb_vamana__count_bytes(index, nodedb_vamana__coder_bytes(index), 0);
        index->recodes = (uint8_t *)nodedb_vamana__alloc(index, index->arrays->capacity, index->recoder->stride,
                                                         NODEDB_CACHE_LINE_BYTES);
        index->recode_at = 0;
        if (index->recodes != NULL) return;
        nodedb_vamana__release_coder(index, index->recoder);
        index->recoder = NULL;
    }
    index->code_due = (uint64_t)index->live + index->live / 8 + 1;
    index->code_inserted = index->code_clipped = 0;
}

/* The bits of the first codes that an index tries; 0: none. */
static uint32_t nodedb_vamana__first_bits(const nodedb_vamana *index) {
    if (index->code == NODEDB_VAMANA_CODE_4BIT) return 4;
    if (index->code == NODEDB_VAMANA_CODE_8BIT) return 8;
    if (index->code == NODEDB_VAMANA_CODE_NONE) return 0;
    return nodedb_vamana__codes_gain(index, 4) ? 4 : nodedb_vamana__codes_gain(index, 8) ? 8 : 0;
}

/* Publishes arrays with these codes, and frees the old codes once no reader uses them. False: no memory. */
static bool nodedb_vamana__replace_codes(nodedb_vamana *index, uint8_t *codes, nodedb_vamana__coder *coder) {
    nodedb_vamana__arrays *old = index->arrays, *a;
    a = (nodedb_vamana__arrays *)nodedb_vamana__alloc(index, 1, sizeof *a, NODEDB_CACHE_LINE_BYTES);
    if (a == NULL) return false;
    *a = *old;
    a->codes = codes, a->coder = coder;
    nodedb_vamana__publish(index, a);
    nodedb_vamana__await_readers(index);
    if (old->codes != NULL && !nodedb_vamana__save_keeps_codes(index, old))
        nodedb_vamana__release(index, old->codes, old->capacity, old->coder->stride);
    nodedb_vamana__release_coder(index, old->coder);
    nodedb_vamana__release(index, old, 1, sizeof *old);
    return true;
}

/* Notes that codes were made, or found useless, for `live` vectors, and that `inserted` were inserted since. */
static void nodedb_vamana__codes_made(nodedb_vamana *index, uint32_t live, uint32_t inserted) {
    index->code_due = live > 0 ? (uint64_t)live * NODEDB_VAMANA__CODE_AGAIN : NODEDB_VAMANA__CODE_FIRST;
    index->code_live = live, index->code_inserted = inserted, index->code_clipped = 0;
    index->code_asked = index->code_missed = 0;
}

/* True if codes must be made: for the first time; as there are many more vectors; as all may have been replaced since;
 * or as the codes clip many of the new ones. */
static bool nodedb_vamana__codes_due(const nodedb_vamana *index) {
    uint32_t many = index->live > NODEDB_VAMANA__CODE_FIRST ? index->live : NODEDB_VAMANA__CODE_FIRST;
    if (nodedb_vamana__first_bits(index) == 0) return false;
    return index->live >= index->code_due || (index->code_live > 0 &&
                                              (index->code_inserted >= many ||
                                               index->code_clipped >= many / NODEDB_VAMANA__CLIPPED_SHARE));
}

/* After the last code: takes the codes, tries finer ones, or goes without. Waits for readers of the old ones. */
static void nodedb_vamana__end_codes(nodedb_vamana *index) {
    uint32_t bits = index->recoder->bits;
    bool good = index->code != NODEDB_VAMANA_CODE_AUTO;
    index->recoder->slack = nodedb_vamana__slack(index, NODEDB_VAMANA__JUDGE_MISSES);
    good = good || (index->recoder->slack <= NODEDB_VAMANA__SLACK_GOOD &&
                    nodedb_vamana__slack(index, NODEDB_VAMANA__OFTEN_MISSES) <= NODEDB_VAMANA__OFTEN_GOOD);
    if (!good && bits == 4 && nodedb_vamana__codes_gain(index, 8)) {
        nodedb_vamana__begin_codes(index, 8);
        return;
    }
    nodedb_vamana__codes_made(index, index->live, 0);
    if (good && nodedb_vamana__replace_codes(index, index->recodes, index->recoder)) {
        index->recoder = NULL, index->recodes = NULL;
        return;
    }
    nodedb_vamana__drop_recoding(index);
    if (!good && index->arrays->codes != NULL) /* the old ones are no better */
        (void)nodedb_vamana__replace_codes(index, NULL, NULL);
}

static void nodedb_vamana__count_inserted(nodedb_vamana *index, uint32_t more) {
    index->code_inserted = more < UINT32_MAX - index->code_inserted ? index->code_inserted + more : UINT32_MAX;
}

/* One slice of making codes, which starts when they are due: of the training, then up to `budget` codes, then a few
 * nodes that judge them. True: there is more to do. */
static bool nodedb_vamana__make_codes(nodedb_vamana *index, uint64_t budget) {
    const nodedb_vamana__arrays *a = index->arrays;
    if (index->recoder == NULL && nodedb_vamana__codes_due(index))
        nodedb_vamana__begin_codes(index, nodedb_vamana__first_bits(index));
    if (index->recoder == NULL) return false;
    if (!nodedb_vamana__is_trained(index->recoder)) {
        nodedb_vamana__train_slice(index, index->recoder, &index->training, index->writer->turned);
        return true;
    }
    for (; budget > 0 && index->recode_at < a->slots; budget--, index->recode_at++)
        if (a->states[index->recode_at] != NODEDB_VAMANA__FREE)
            (void)nodedb_vamana__encode_slot(index, a, index->recoder, index->recodes, index->writer->turned,
                                             index->recode_at);
    if (index->recode_at < a->slots) return true;
    if (index->judge_at == NODEDB_VAMANA__JUDGES) {
        nodedb_vamana__end_codes(index);
    } else {
        nodedb_vamana__arrays trial = *a;
        uint32_t end = index->judge_at + NODEDB_VAMANA__JUDGES_PER_CHANGE;
        trial.codes = index->recodes, trial.coder = index->recoder;
        for (; index->judge_at < end && index->judge_at < NODEDB_VAMANA__JUDGES; index->judge_at++)
            nodedb_vamana__judge(index, &trial, index->writer,
                                 (uint32_t)((uint64_t)index->judge_at * a->slots / NODEDB_VAMANA__JUDGES));
    }
    return index->recoder != NULL;
}

/* COSINE: notes a vector of zeros. */
static void nodedb_vamana__note_zeros(const nodedb_vamana *index, nodedb_vamana__arrays *a, float norm) {
    if (index->metric == NODEDB_VAMANA_COSINE && !(norm > 0)) nodedb__store_relaxed(&a->zeros, true);
}

/* Makes the code of a new vector: of the codes in use, and of those being made if they have passed its slot. */
static void nodedb_vamana__encode_new(nodedb_vamana *index, float *turned, uint32_t slot) {
    const nodedb_vamana__arrays *a = index->arrays;
    if (a->codes != NULL && !nodedb_vamana__encode_slot(index, a, a->coder, a->codes, turned, slot))
        (void)nodedb__add_relaxed(&index->code_clipped, 1u);
    if (index->recoder != NULL && slot < index->recode_at)
        (void)nodedb_vamana__encode_slot(index, a, index->recoder, index->recodes, turned, slot);
}

/* ===================================================================================================================
 * FILES: format, saving, opening, verifying
 *
 * The byte tables stand in the manual. Every offset follows from the header's counts, so a reader computes all offsets
 * and compares. Each block has a checksum.
 * ================================================================================================================ */

/* ---- the format -------------------------------------------------------------------------------------------------- */

#define NODEDB_VAMANA__MAGIC "NDBVAMAN"
#define NODEDB_VAMANA__BLOCK ((size_t)NODEDB_VAMANA_BLOCK_BYTES)
#define NODEDB_VAMANA__CHUNK ((size_t)16 * NODEDB_VAMANA_BLOCK_BYTES) /* bytes in which a section is read */
#define NODEDB_VAMANA__SUMS_PER_BLOCK 1023u                           /* and their own checksum */
#define NODEDB_VAMANA__READ_TRIES 2u
#define NODEDB_VAMANA__NO_RECORD (UINT32_MAX - 1) /* first word of a damaged node's row in the cache */

enum { /* offsets in the header block */
    NODEDB_VAMANA__AT_VERSION = 8,
    NODEDB_VAMANA__AT_DIM = 12,
    NODEDB_VAMANA__AT_TYPE = 16,
    NODEDB_VAMANA__AT_METRIC = 20,
    NODEDB_VAMANA__AT_DEGREE = 24,
    NODEDB_VAMANA__AT_BEAM_BUILD = 28,
    NODEDB_VAMANA__AT_ALPHA = 32,
    NODEDB_VAMANA__AT_ENTRY = 36,
    NODEDB_VAMANA__AT_SEED = 40,
    NODEDB_VAMANA__AT_SLOTS = 48,
    NODEDB_VAMANA__AT_LIVE = 52,
    NODEDB_VAMANA__AT_REMOVED = 56,
    NODEDB_VAMANA__AT_OFFSETS = 64, /* of the sections, and the size of the file: 14 times 8 bytes */
    NODEDB_VAMANA__AT_PASSES = 208,
    NODEDB_VAMANA__AT_CODE = 212,
    NODEDB_VAMANA__AT_BITS = 176,
    NODEDB_VAMANA__AT_RESIDENT = 180, /* 1: the index walks on the codes in memory; nothing of the layout RESIDENT */
    NODEDB_VAMANA__AT_STEP = 184,
    NODEDB_VAMANA__AT_CODE_LIVE = 188,
    NODEDB_VAMANA__AT_CODE_INSERTED = 192,
    NODEDB_VAMANA__AT_CODE_CLIPPED = 196,
    NODEDB_VAMANA__AT_CODE_DUE = 200,
    NODEDB_VAMANA__AT_LAYOUT = 216,
    NODEDB_VAMANA__AT_FIRST_FREE = 220,
    NODEDB_VAMANA__AT_COLOUR = 224,
    NODEDB_VAMANA__AT_SWEEP = 228,
    NODEDB_VAMANA__AT_SWEEP_AT = 232,
    NODEDB_VAMANA__AT_RECODE_BITS = 236,
    NODEDB_VAMANA__AT_RECODE_STEP = 240,
    NODEDB_VAMANA__AT_RECODE_AT = 244,
    NODEDB_VAMANA__AT_SLACK = 248,
    NODEDB_VAMANA__AT_ZEROS = 252,
    NODEDB_VAMANA__AT_STARTS = 256,
    NODEDB_VAMANA__AT_CODE_ASKED = 512,
    NODEDB_VAMANA__AT_CODE_MISSED = 516,
    NODEDB_VAMANA__AT_JUDGE_AT = 520,
    NODEDB_VAMANA__AT_DISPLACED = 524, /* 128 times 2 bytes */
    NODEDB_VAMANA__AT_BEAM_NOW = 780,
    NODEDB_VAMANA__AT_BEAM_ASKED = 784,
    NODEDB_VAMANA__AT_BEAM_MISSED = 788,
    NODEDB_VAMANA__AT_TRAINING_SLOTS = 792,
    NODEDB_VAMANA__AT_TRAINING_AT = 796,
    NODEDB_VAMANA__AT_TRAINING_SAMPLED = 800,
    NODEDB_VAMANA__AT_TRAINING_SQUARES = 808,
    NODEDB_VAMANA__AT_TRAINING_ERRORS = 816, /* STEPS times 8 bytes */
    NODEDB_VAMANA__AT_HEADER_SUM = 4092
};

/* The sections of a file, in order; the manual has their contents. */
enum {
    NODEDB_VAMANA__IN_STATES = 0,
    NODEDB_VAMANA__IN_IDS,
    NODEDB_VAMANA__IN_NORMS,
    NODEDB_VAMANA__IN_ROWS,
    NODEDB_VAMANA__IN_HEADS,
    NODEDB_VAMANA__IN_PARENTS,
    NODEDB_VAMANA__IN_MEANS,
    NODEDB_VAMANA__IN_CODES,
    NODEDB_VAMANA__IN_RECORDS,
    NODEDB_VAMANA__IN_TABLE,
    NODEDB_VAMANA__IN_SUMS,
    NODEDB_VAMANA__IN_SUMS_AGAIN,
    NODEDB_VAMANA__IN_HEADER_AGAIN,
    NODEDB_VAMANA__SECTIONS
};

/* Where everything is in a file, computed from the header's counts. Constant. Offsets and sizes in bytes. */
typedef struct nodedb_vamana__file_layout {
    uint64_t at[NODEDB_VAMANA__SECTIONS + 1]; /* where each section starts; the last: the size of the file */
    size_t item[NODEDB_VAMANA__IN_RECORDS];   /* bytes of each slot in a section; 0: it is empty or not by slots */
    uint64_t blocks;                          /* that have a checksum: from block 1 to the one before the sums */
    uint64_t places;                          /* in the table of ids */
    uint32_t vector_bytes, row_at;            /* of a record; where its row starts, 0: it has none */
    uint32_t record_bytes, records_per_block, blocks_per_record; /* records_per_block 0: each starts a block */
} nodedb_vamana__file_layout;

static uint64_t nodedb_vamana__blocks(uint64_t bytes) {
    return (bytes + NODEDB_VAMANA_BLOCK_BYTES - 1) / NODEDB_VAMANA_BLOCK_BYTES;
}

/* Computes where everything is in a file of `slots` slots; bits 0: no codes. No product exceeds 2^32 * 2^19 = 2^51. */
static nodedb_vamana__file_layout nodedb_vamana__layout_of(const nodedb_vamana *index, nodedb_vamana_layout kind,
                                                           uint32_t bits, uint32_t recode_bits, uint32_t slots) {
    nodedb_vamana__file_layout l;
    uint64_t blocks[NODEDB_VAMANA__SECTIONS], record_blocks, at = NODEDB_VAMANA_BLOCK_BYTES;
    memset(&l, 0, sizeof l);
    l.vector_bytes = (uint32_t)index->vector_bytes, l.record_bytes = l.vector_bytes;
    if (kind == NODEDB_VAMANA_PACKED)
        l.row_at = (l.vector_bytes + 3) / 4 * 4, l.record_bytes = l.row_at + index->degree * 4;
    l.records_per_block = l.record_bytes <= NODEDB_VAMANA_BLOCK_BYTES ? NODEDB_VAMANA_BLOCK_BYTES / l.record_bytes : 0;
    l.blocks_per_record = (uint32_t)nodedb_vamana__blocks(l.record_bytes);
    record_blocks = l.records_per_block > 0 ? ((uint64_t)slots + l.records_per_block - 1) / l.records_per_block
                                            : (uint64_t)slots * l.blocks_per_record;
    l.item[NODEDB_VAMANA__IN_STATES] = 1, l.item[NODEDB_VAMANA__IN_IDS] = 8, l.item[NODEDB_VAMANA__IN_HEADS] = 4;
    l.item[NODEDB_VAMANA__IN_PARENTS] = 4;
    l.item[NODEDB_VAMANA__IN_NORMS] = index->metric == NODEDB_VAMANA_L2 ? 0 : 4;
    l.item[NODEDB_VAMANA__IN_ROWS] = kind == NODEDB_VAMANA_PACKED ? 0 : index->row_words * 4;
    l.item[NODEDB_VAMANA__IN_CODES] = nodedb_vamana__code_stride(index->dim, bits);
    for (int i = 0; i < NODEDB_VAMANA__IN_RECORDS; i++) blocks[i] = nodedb_vamana__blocks(l.item[i] * (uint64_t)slots);
    blocks[NODEDB_VAMANA__IN_MEANS] =
        nodedb_vamana__blocks(((bits != 0 ? 1 : 0) + (recode_bits != 0 ? 1 : 0)) * (uint64_t)index->dim * 4);
    blocks[NODEDB_VAMANA__IN_RECORDS] = record_blocks;
    for (l.places = 16; l.places < slots + (uint64_t)slots / 2;) l.places *= 2;
    blocks[NODEDB_VAMANA__IN_TABLE] = nodedb_vamana__blocks(l.places * 4);
    for (int i = 0; i <= NODEDB_VAMANA__IN_TABLE; i++) l.blocks += blocks[i];
    blocks[NODEDB_VAMANA__IN_SUMS] = (l.blocks + NODEDB_VAMANA__SUMS_PER_BLOCK - 1) / NODEDB_VAMANA__SUMS_PER_BLOCK;
    blocks[NODEDB_VAMANA__IN_SUMS_AGAIN] = blocks[NODEDB_VAMANA__IN_SUMS];
    blocks[NODEDB_VAMANA__IN_HEADER_AGAIN] = 1;
    for (int i = 0; i < NODEDB_VAMANA__SECTIONS; i++) l.at[i] = at, at += blocks[i] * NODEDB_VAMANA_BLOCK_BYTES;
    l.at[NODEDB_VAMANA__SECTIONS] = at;
    return l;
}

static const char *nodedb_vamana__section_name(const nodedb_vamana__file_layout *l, uint64_t offset) {
    static const char *const names[] = {"states", "ids",     "norms", "rows",      "heads",     "parents", "means",
                                        "codes",  "records", "table", "checksums", "checksums", "header"};
    int i = NODEDB_VAMANA__SECTIONS - 1;
    while (i > 0 && (l->at[i] > offset || l->at[i] == l->at[i + 1])) i--;
    return offset < NODEDB_VAMANA_BLOCK_BYTES ? "header" : names[i];
}

static void nodedb_vamana__put_f32(uint8_t *at, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    nodedb_put_u32(at, bits);
}

static void nodedb_vamana__put_f64(uint8_t *at, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    nodedb_put_u64(at, bits);
}

static double nodedb_vamana__get_f64(const uint8_t *at) {
    uint64_t bits = nodedb_get_u64(at);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float nodedb_vamana__get_f32(const uint8_t *at) {
    uint32_t bits = nodedb_get_u32(at);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Converts words of `size` bytes between file order, which is little-endian, and memory order, which is this machine's.
 * As integers, since a float that passes through a register may change the bits of a NaN. */
static void nodedb_vamana__swap_words(void *words, size_t bytes, size_t size) {
    uint8_t *p = (uint8_t *)words, *end = p + bytes / size * size;
    if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) return;
    for (; p < end && size == 4; p += 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        nodedb_put_u32(p, word);
    }
    for (; p < end && size == 8; p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        nodedb_put_u64(p, word);
    }
}

/* Converts a record between file order and memory order. */
static void nodedb_vamana__swap_record(const nodedb_vamana *index, const nodedb_vamana__file_layout *l,
                                       uint8_t *record) {
    if (index->type == NODEDB_VAMANA_F32) nodedb_vamana__swap_words(record, l->vector_bytes, 4);
    if (l->row_at > 0) nodedb_vamana__swap_words(record + l->row_at, index->degree * (size_t)4, 4);
}

static nodedb_status nodedb_vamana__file_error(nodedb_error *err, nodedb_status status, int error, uint64_t offset,
                                               const char *path, const char *what) {
    (void)nodedb_fail(err, status, error, "%s: %s at offset %llu", nodedb__path_end(path), what,
                       (unsigned long long)offset);
    if (err != NULL) err->offset = offset;
    return status;
}

static nodedb_status nodedb_vamana__no_memory(nodedb_error *err, const char *to, const char *path) {
    return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to %s %s", to, nodedb__path_end(path));
}

/* ---- an open file ------------------------------------------------------------------------------------------------ */

/* Of an index on disk, sections are read into memory chunk by chunk when they are first needed. They are read and not
 * mapped, so a file that shrinks or a device that fails is an error and not a signal. Each block is checked when it is
 * read. A damaged block is quarantined, and what stands in it is passed over. */

#if !defined(NODEDB_VAMANA_NO_DISK)
/* A section that is read into memory chunk by chunk, when it is first needed. Any searcher may load a chunk that it has
 * claimed. */
typedef struct nodedb_vamana__part {
    uint8_t *memory;   /* NULL: this section is not kept in memory */
    size_t bytes;      /* whole blocks */
    uint8_t *chunks;   /* state of each: ABSENT .. DAMAGED; atomic */
    size_t count;      /* of chunks */
} nodedb_vamana__part;

/* Packed layout: records of the nodes near the starts, kept in memory. `load` alone fills it, breadth first. Once it is
 * `ready` searchers read it and nothing changes. */
typedef struct nodedb_vamana__cache {
    uint32_t max, count, filled; /* nodes it has room for, that are wanted, and that are read */
    uint32_t *slots;             /* breadth first */
    uint32_t *places;            /* numbers of `slots` by slot: open addressing, at most half full */
    uint32_t places_size;
    size_t stride;               /* bytes from one record to the next */
    uint8_t *records;
    bool ready;                  /* atomic */
    nodedb_vamana_fetcher fetcher; /* that fills it; ctx NULL: none */
} nodedb_vamana__cache;

#endif

/* An open file: of an index on disk for its lifetime, else while it is opened. Constant, except for what is read later:
 * sums and groups, sections, damaged blocks; several searchers may write those, atomically or after a claim. */
typedef struct nodedb_vamana__file {
    char *path;
    size_t path_bytes;
    int fd;                      /* -1: none */
    nodedb_vamana__file_layout layout;
    uint32_t *sums;              /* checksums of the blocks from 1 on, in groups */
    uint8_t *groups;             /* state of each group, like that of a chunk */
    size_t group_count;
#if !defined(NODEDB_VAMANA_NO_DISK)
    bool uring;
    bool codes_are_judged;       /* the index walks on them in memory too */
    nodedb_vamana__part parts[NODEDB_VAMANA__SECTIONS];
    uint64_t chunks_left;        /* of all sections, that are not yet in memory intact */
    int load_section;            /* where `load` continues */
    size_t load_chunk;
    uint8_t *damaged;            /* a bit for each block of the file: it is quarantined */
    uint64_t damaged_blocks;
    uint8_t *map;                /* the records, if they are read through a mapping; else NULL */
    size_t map_bytes;
    nodedb_vamana__cache cache;
#endif
} nodedb_vamana__file;

/* States of a chunk or a group of checksums. ABSENT -> LOADING: a thread claims it. LOADING -> LOADED or DAMAGED:
 * final. LOADING -> ABSENT: reading failed, and the next caller tries again. */
enum { NODEDB_VAMANA__ABSENT = 0, NODEDB_VAMANA__LOADING, NODEDB_VAMANA__LOADED, NODEDB_VAMANA__DAMAGED };

/* True: the caller must load what this state is of, and then set the state. False: it is in memory or damaged. Waits
 * while another thread loads it. */
static bool nodedb_vamana__claim(uint8_t *state, uint8_t *now) {
    for (;;) {
        uint8_t absent = NODEDB_VAMANA__ABSENT;
        *now = nodedb__load_acquire(state);
        if (*now >= NODEDB_VAMANA__LOADED) return false;
        if (*now == NODEDB_VAMANA__ABSENT && nodedb__cas(state, &absent, NODEDB_VAMANA__LOADING)) return true;
        (void)sched_yield();
    }
}

/* Reads blocks; a read that fails is repeated once. NODEDB_ERR_CORRUPT: the file ends before them. */
static nodedb_status nodedb_vamana__read_at(const nodedb_vamana *index, void *to, size_t bytes, uint64_t offset,
                                            nodedb_error *err) {
    const nodedb_vamana__file *f = index->file;
    uint32_t tries = 0;
    int error;
    do error = nodedb__read_all(&index->io, f->fd, to, bytes, offset);
    while (error < 0 && ++tries < NODEDB_VAMANA__READ_TRIES);
    if (error == 0) return NODEDB_OK;
    if (error == -ENODATA)
        return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, offset, f->path, "the file ends early");
    return nodedb_vamana__file_error(err, nodedb_io_status(-error), -error, offset, f->path,
                                     "cannot be read, tried twice");
}

/* The checksum of a block of checksums. It depends on the group's number, so that no group passes for another. */
static uint32_t nodedb_vamana__sum_of_group(const uint8_t *block, size_t group) {
    return nodedb_crc32c((uint32_t)group + 1, block, NODEDB_VAMANA__BLOCK - 4);
}

/* Reads both copies of a group of checksums and keeps an intact one, the first if both are. *copies: a bit for each
 * intact copy. */
static nodedb_status nodedb_vamana__read_group(nodedb_vamana *index, size_t group, int *copies, nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    uint8_t space[2 * NODEDB_VAMANA_BLOCK_BYTES], *block;
    nodedb_status status = NODEDB_OK;
    block = space + (NODEDB_VAMANA__BLOCK - (uintptr_t)space % NODEDB_VAMANA__BLOCK) % NODEDB_VAMANA__BLOCK;
    *copies = 0;
    for (int copy = 1; copy >= 0; copy--) {
        uint64_t at = f->layout.at[NODEDB_VAMANA__IN_SUMS + copy] + (uint64_t)group * NODEDB_VAMANA_BLOCK_BYTES;
        nodedb_status one = nodedb_vamana__read_at(index, block, NODEDB_VAMANA__BLOCK, at, err);
        if (one != NODEDB_OK && one != NODEDB_ERR_CORRUPT) status = one;
        if (one != NODEDB_OK ||
            nodedb_vamana__sum_of_group(block, group) != nodedb_get_u32(block + NODEDB_VAMANA__BLOCK - 4))
            continue;
        *copies |= 1 << copy;
        for (uint32_t i = 0; i < NODEDB_VAMANA__SUMS_PER_BLOCK; i++)
            f->sums[group * NODEDB_VAMANA__SUMS_PER_BLOCK + i] = nodedb_get_u32(block + 4 * i);
    }
    if (*copies != 0) return NODEDB_OK;
    if (status != NODEDB_OK) return status;
    return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0,
                                     f->layout.at[NODEDB_VAMANA__IN_SUMS] + (uint64_t)group * NODEDB_VAMANA_BLOCK_BYTES,
                                     f->path, "both copies of the checksums are damaged");
}

/* Checks a block that was read against its checksum, and reads the group of checksums first if it must.
 * NODEDB_ERR_CORRUPT: it does not match; or both copies of its group are damaged, so that no block of it matches. */
static nodedb_status nodedb_vamana__check_block(nodedb_vamana *index, uint64_t offset, const uint8_t *bytes,
                                                nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    uint64_t number = offset / NODEDB_VAMANA_BLOCK_BYTES - 1;
    size_t group = (size_t)(number / NODEDB_VAMANA__SUMS_PER_BLOCK);
    uint8_t now;
    assert(number < f->layout.blocks);
    if (nodedb_vamana__claim(&f->groups[group], &now)) {
        int copies;
        nodedb_status status = nodedb_vamana__read_group(index, group, &copies, err);
        now = status == NODEDB_OK            ? NODEDB_VAMANA__LOADED
              : status == NODEDB_ERR_CORRUPT ? NODEDB_VAMANA__DAMAGED
                                             : NODEDB_VAMANA__ABSENT;
        nodedb__store_release(&f->groups[group], now);
        if (status != NODEDB_OK) return status;
    }
    if (now == NODEDB_VAMANA__LOADED && nodedb_crc32c(0, bytes, NODEDB_VAMANA__BLOCK) == f->sums[number])
        return NODEDB_OK;
    return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, offset, f->path,
                                     "the block does not match its checksum");
}

/* ---- slots that a save has still to write ------------------------------------------------------------------------ */

#define NODEDB_VAMANA__KEPT_PER_BLOB 64u /* slots whose old contents are allocated together */

/* Everything that belongs to a slot. Borrows what it points to; lives for one call. */
typedef struct nodedb_vamana__slot_view {
    uint8_t state;
    nodedb_vamana__head head;
    uint32_t parent;
    float norm;
    uint64_t id;
    const uint32_t *row;
    const uint8_t *code, *vector; /* code NULL: none */
} nodedb_vamana__slot_view;

/* Copies of slots that changed before the save wrote them, as they were when it began. The writer's. */
typedef struct nodedb_vamana__kept {
    uint32_t *table;             /* numbers by slot: open addressing, at most half full */
    uint32_t table_size;         /* a power of two, or 0 */
    uint32_t *slots;             /* of each number; room for table_size / 2 */
    uint8_t **blobs;             /* room for table_size / 2 / KEPT_PER_BLOB + 1; NULL: none yet */
    uint32_t count;
    size_t stride;               /* bytes of one copy */
} nodedb_vamana__kept;

/* Buffered output of one section. */
typedef struct nodedb_vamana__stream {
    uint8_t *buffer;             /* STREAM_BYTES */
    size_t used;
    uint64_t offset;             /* of the buffer's first byte */
} nodedb_vamana__stream;

/* The phases of a save, in order; each ends by itself. An error in any of them ends the save. */
typedef enum nodedb_vamana__save_phase {
    NODEDB_VAMANA__SAVE_TRUNCATES = 0, /* the temporary file, if an earlier save left one */
    NODEDB_VAMANA__SAVE_CLEARS,        /* the table of ids */
    NODEDB_VAMANA__SAVE_SLOTS,
    NODEDB_VAMANA__SAVE_TABLE,
    NODEDB_VAMANA__SAVE_SUMS,
    NODEDB_VAMANA__SAVE_HEADERS,       /* and syncs the file */
    NODEDB_VAMANA__SAVE_RENAMES,
    NODEDB_VAMANA__SAVE_SYNCS_NAME,
    NODEDB_VAMANA__SAVE_TRUNCATES_OLD, /* the file that was replaced */
    NODEDB_VAMANA__SAVE_DONE
} nodedb_vamana__save_phase;

/* A save under way; the writer's. It visits the slots once. A slot that it has not reached is copied before it changes,
 * so the file holds the index as it was when the save began.
 *
 *   slots    0 ............ next ................ slots
 *            written        copied before they    inserted since: not saved
 *                           change */
typedef struct nodedb_vamana__save_state {
    nodedb_vamana__save_phase phase;
    uint64_t at;                 /* how far the phase is */
    uint32_t slots, next;        /* at the beginning; the first that is not written */
    nodedb_vamana__file_layout layout;
    nodedb_vamana__coder *coder; /* of the codes that are written; its own copy. NULL: none */
    nodedb_vamana__coder *recoder; /* of codes that were being made; its own copy. NULL: none */
    bool make_codes;             /* the index has none: make codes for this file */
    uint8_t *frozen;             /* codes that the index has replaced since; NULL: the index still has them */
    size_t frozen_count, frozen_stride;
    nodedb_vamana__kept kept;
    nodedb_vamana__stream streams[NODEDB_VAMANA__SECTIONS];
    uint8_t *buffers;            /* of all streams */
    uint8_t *scratch;            /* a code, and dim floats */
    uint8_t *header;             /* one block */
    uint32_t *table, *sums;
    char *path, *temporary;
    size_t path_bytes;
    int fd, error;               /* error: -errno of the first failure, which sticks */
    int old_fd;                  /* of the file that is replaced, held to be truncated in steps; below 0: none */
    uint64_t written;            /* since the last sync */
    uint64_t stale;              /* bytes of the temporary file or of the old one still to be truncated */
} nodedb_vamana__save_state;

static uint32_t nodedb_vamana__kept_place(const nodedb_vamana__kept *k, uint32_t slot) {
    uint32_t at = (uint32_t)nodedb_mix64(slot) & (k->table_size - 1);
    while (k->table[at] != NODEDB_VAMANA__NONE && k->slots[k->table[at]] != slot) at = (at + 1) & (k->table_size - 1);
    return at;
}

static bool nodedb_vamana__kept_grow(const nodedb_vamana *index, nodedb_vamana__kept *k) {
    nodedb_vamana__kept more = *k;
    uint32_t i, blobs = k->table_size / 2 / NODEDB_VAMANA__KEPT_PER_BLOB + 1, want;
    if (k->table_size > UINT32_MAX / 2) return false;
    more.table_size = k->table_size == 0 ? 256 : 2 * k->table_size;
    want = more.table_size / 2 / NODEDB_VAMANA__KEPT_PER_BLOB + 1;
    more.table = (uint32_t *)nodedb__alloc(&index->allocator, more.table_size * sizeof *more.table, sizeof(void *));
    more.slots = (uint32_t *)nodedb__alloc(&index->allocator, more.table_size / 2 * sizeof *more.slots, sizeof(void *));
    more.blobs = (uint8_t **)nodedb__alloc_zero(&index->allocator, want * sizeof *more.blobs, sizeof(void *));
    if (more.table == NULL || more.slots == NULL || more.blobs == NULL) {
        nodedb__release(&index->allocator, more.table, more.table_size * sizeof *more.table);
        nodedb__release(&index->allocator, more.slots, more.table_size / 2 * sizeof *more.slots);
        nodedb__release(&index->allocator, more.blobs, want * sizeof *more.blobs);
        return false;
    }
    memset(more.table, 0xFF, more.table_size * sizeof *more.table); /* NONE */
    if (k->table_size > 0) {
        memcpy(more.slots, k->slots, k->count * sizeof *k->slots);
        memcpy(more.blobs, k->blobs, blobs * sizeof *k->blobs);
        nodedb__release(&index->allocator, k->table, k->table_size * sizeof *k->table);
        nodedb__release(&index->allocator, k->slots, k->table_size / 2 * sizeof *k->slots);
        nodedb__release(&index->allocator, k->blobs, blobs * sizeof *k->blobs);
    }
    for (i = 0; i < more.count; i++) more.table[nodedb_vamana__kept_place(&more, more.slots[i])] = i;
    *k = more;
    return true;
}

static void nodedb_vamana__kept_free(const nodedb_vamana *index, nodedb_vamana__kept *k) {
    uint32_t i, blobs = k->table_size / 2 / NODEDB_VAMANA__KEPT_PER_BLOB + 1;
    if (k->table_size == 0) return;
    for (i = 0; i < blobs; i++)
        nodedb__release(&index->allocator, k->blobs[i], NODEDB_VAMANA__KEPT_PER_BLOB * k->stride);
    nodedb__release(&index->allocator, k->table, k->table_size * sizeof *k->table);
    nodedb__release(&index->allocator, k->slots, k->table_size / 2 * sizeof *k->slots);
    nodedb__release(&index->allocator, k->blobs, blobs * sizeof *k->blobs);
    memset(k, 0, sizeof *k);
}

static uint8_t *nodedb_vamana__kept_at(const nodedb_vamana__kept *k, uint32_t number) {
    return k->blobs[number / NODEDB_VAMANA__KEPT_PER_BLOB] + number % NODEDB_VAMANA__KEPT_PER_BLOB * k->stride;
}

/* A slot as it is now. Its code is one of those that the index had when the save began. */
static nodedb_vamana__slot_view nodedb_vamana__view(const nodedb_vamana *index, const nodedb_vamana__save_state *save,
                                                    uint32_t slot) {
    const nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__slot_view v;
    memset(&v, 0, sizeof v);
    v.state = a->states[slot], v.head = a->heads[slot], v.parent = a->parents[slot], v.id = a->ids[slot];
    v.norm = nodedb_vamana__norm(a, slot);
    v.row = nodedb_vamana__row(index, a, slot), v.vector = nodedb_vamana__vector(index, a, slot);
    if (save->coder != NULL && !save->make_codes)
        v.code = (save->frozen != NULL ? save->frozen : a->codes) + (size_t)slot * save->coder->stride;
    return v;
}

/* The slot as it was when the save began. False: it has not changed since. */
static bool nodedb_vamana__kept_view(const nodedb_vamana *index, const nodedb_vamana__save_state *save, uint32_t slot,
                                     nodedb_vamana__slot_view *v) {
    uint32_t number = save->kept.count == 0 ? NODEDB_VAMANA__NONE
                                            : save->kept.table[nodedb_vamana__kept_place(&save->kept, slot)];
    const uint8_t *at;
    if (number == NODEDB_VAMANA__NONE) return false;
    at = nodedb_vamana__kept_at(&save->kept, number);
    memcpy(v, at, sizeof *v);
    v->vector = at + sizeof *v, v->row = (const uint32_t *)(const void *)(v->vector + index->stride);
    if (v->code != NULL) v->code = (const uint8_t *)(v->row + index->row_words);
    return true;
}

/* Must be called before a slot's contents change: copies them if a save has still to write them. Without memory the
 * save fails and not the change. */
static void nodedb_vamana__before_change(const nodedb_vamana *index, uint32_t slot) {
    nodedb_vamana__save_state *save = index->save;
    nodedb_vamana__slot_view v;
    uint8_t **blob, *at;
    uint32_t place;
    if (save == NULL || slot >= save->slots || slot < save->next || save->error != 0) return;
    if (2 * save->kept.count >= save->kept.table_size && !nodedb_vamana__kept_grow(index, &save->kept)) {
        save->error = -ENOMEM;
        return;
    }
    place = nodedb_vamana__kept_place(&save->kept, slot);
    if (save->kept.table[place] != NODEDB_VAMANA__NONE) return;
    blob = &save->kept.blobs[save->kept.count / NODEDB_VAMANA__KEPT_PER_BLOB];
    if (*blob == NULL)
        *blob = (uint8_t *)nodedb__alloc(&index->allocator, NODEDB_VAMANA__KEPT_PER_BLOB * save->kept.stride,
                                         NODEDB_CACHE_LINE_BYTES);
    if (*blob == NULL) {
        save->error = -ENOMEM;
        return;
    }
    save->kept.slots[save->kept.count] = slot, save->kept.table[place] = save->kept.count;
    at = nodedb_vamana__kept_at(&save->kept, save->kept.count++);
    v = nodedb_vamana__view(index, save, slot);
    memcpy(at, &v, sizeof v);
    memcpy(at + sizeof v, v.vector, index->stride);
    memcpy(at + sizeof v + index->stride, v.row, index->row_words * sizeof *v.row);
    if (v.code != NULL)
        memcpy(at + sizeof v + index->stride + index->row_words * sizeof *v.row, v.code, save->coder->stride);
}

/* Codes that the index replaces and that a save has still to write become the save's. False: nobody needs them. */
static bool nodedb_vamana__save_keeps_codes(const nodedb_vamana *index, const nodedb_vamana__arrays *old) {
    nodedb_vamana__save_state *save = index->save;
    if (save == NULL || save->make_codes || save->frozen != NULL) return false;
    save->frozen = old->codes;
    save->frozen_count = old->capacity, save->frozen_stride = old->coder->stride;
    return true;
}

static nodedb_status nodedb_vamana__check_writable(const nodedb_vamana *index, nodedb_error *err) {
    if (index == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "index is NULL");
    if (index->file != NULL)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "%s was opened on disk, read-only", index->file->path);
    return NODEDB_OK;
}

/* For changes that a save under way cannot follow slot by slot. */
static nodedb_status nodedb_vamana__check_unsaved(const nodedb_vamana *index, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    if (status != NODEDB_OK || index->save == NULL) return status;
    return nodedb_fail(err, NODEDB_ERR_STATE, 0, "%s is being saved: finish or cancel that first", index->save->path);
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

/* In slices, so that a server can save between requests: see nodedb_vamana__save_state. */

#define NODEDB_VAMANA__SLACK_OF_FILE 12u /* of 8-bit codes made for a file, which no walk has judged */
#define NODEDB_VAMANA__STREAM_BYTES (16 * NODEDB_VAMANA__BLOCK)
#define NODEDB_VAMANA__CACHE_SHARE 32u   /* the cache holds 1/32 of the records by default ... */
#define NODEDB_VAMANA__CACHE_MIN 256u    /* ... and at least so many nodes */
#define NODEDB_VAMANA__SYNC_BYTES ((uint64_t)1 << 20) /* written between two syncs: syncing more takes too long */
#define NODEDB_VAMANA__TRUNCATE_BYTES ((uint64_t)4 << 20)  /* that are truncated at a time */
#define NODEDB_VAMANA__WORDS_PER_STEP 1024u           /* of the table, cleared or written for the budget of one slot */

static void nodedb_vamana__stream_flush(const nodedb_vamana *index, nodedb_vamana__save_state *save, int section) {
    nodedb_vamana__stream *s = &save->streams[section];
    size_t bytes = (s->used + NODEDB_VAMANA__BLOCK - 1) / NODEDB_VAMANA__BLOCK * NODEDB_VAMANA__BLOCK;
    memset(s->buffer + s->used, 0, bytes - s->used);
    for (size_t at = 0; at < bytes && section <= NODEDB_VAMANA__IN_TABLE; at += NODEDB_VAMANA__BLOCK)
        save->sums[(s->offset + at) / NODEDB_VAMANA_BLOCK_BYTES - 1] =
            nodedb_crc32c(0, s->buffer + at, NODEDB_VAMANA__BLOCK);
    if (save->error == 0) save->error = nodedb__write_all(&index->io, save->fd, s->buffer, bytes, s->offset);
    s->offset += bytes, s->used = 0, save->written += bytes;
}

static void nodedb_vamana__stream_write(const nodedb_vamana *index, nodedb_vamana__save_state *save, int section,
                                        const void *data, size_t bytes) {
    nodedb_vamana__stream *s = &save->streams[section];
    const uint8_t *p = (const uint8_t *)data;
    while (bytes > 0) {
        size_t part = nodedb_vamana__min(NODEDB_VAMANA__STREAM_BYTES - s->used, bytes);
        if (p != NULL) memcpy(s->buffer + s->used, p, part), p += part;
        else memset(s->buffer + s->used, 0, part);
        s->used += part, bytes -= part;
        if (s->used == NODEDB_VAMANA__STREAM_BYTES) nodedb_vamana__stream_flush(index, save, section);
    }
}

/* Writes `count` words; NULL: zeros. */
static void nodedb_vamana__stream_words(const nodedb_vamana *index, nodedb_vamana__save_state *save, int section,
                                        const uint32_t *words, size_t count) {
    size_t i;
    for (i = 0; i < count && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ && words != NULL; i++) {
        uint8_t bytes[4];
        nodedb_put_u32(bytes, words[i]);
        nodedb_vamana__stream_write(index, save, section, bytes, 4);
    }
    if (i == 0) nodedb_vamana__stream_write(index, save, section, words, count * 4);
}

/* Writes a slot's record: its vector, and in the packed layout its row. */
static void nodedb_vamana__save_record(const nodedb_vamana *index, nodedb_vamana__save_state *save, uint32_t slot,
                                       const nodedb_vamana__slot_view *v) {
    const nodedb_vamana__file_layout *l = &save->layout;
    const int to = NODEDB_VAMANA__IN_RECORDS;
    size_t pad = l->row_at > 0 ? l->row_at - l->vector_bytes : 0, rest;
    bool is_free = v->state == NODEDB_VAMANA__FREE;
    if (index->type == NODEDB_VAMANA_F32)
        nodedb_vamana__stream_words(index, save, to, is_free ? NULL : (const uint32_t *)(const void *)v->vector,
                                    index->dim);
    else nodedb_vamana__stream_write(index, save, to, is_free ? NULL : v->vector, l->vector_bytes);
    nodedb_vamana__stream_write(index, save, to, NULL, pad);
    if (l->row_at > 0) nodedb_vamana__stream_words(index, save, to, v->row, index->degree);
    if (l->records_per_block > 0 && (slot + 1) % l->records_per_block != 0) return;
    rest = save->streams[to].used % NODEDB_VAMANA__BLOCK;
    if (rest > 0) nodedb_vamana__stream_write(index, save, to, NULL, NODEDB_VAMANA__BLOCK - rest);
}

static void nodedb_vamana__save_slot(const nodedb_vamana *index, nodedb_vamana__save_state *save, uint32_t slot) {
    const nodedb_vamana__file_layout *l = &save->layout;
    nodedb_vamana__slot_view v;
    uint8_t id[8], *code = save->scratch;
    uint32_t norm;
    bool is_free;
    if (!nodedb_vamana__kept_view(index, save, slot, &v)) v = nodedb_vamana__view(index, save, slot);
    is_free = v.state == NODEDB_VAMANA__FREE;
    nodedb_put_u64(id, is_free ? 0 : v.id);
    memcpy(&norm, &v.norm, 4);
    if (is_free) norm = 0;
    nodedb_vamana__stream_write(index, save, NODEDB_VAMANA__IN_STATES, &v.state, 1);
    nodedb_vamana__stream_write(index, save, NODEDB_VAMANA__IN_IDS, id, 8);
    nodedb_vamana__stream_write(index, save, NODEDB_VAMANA__IN_HEADS, &v.head, 4);
    nodedb_vamana__stream_words(index, save, NODEDB_VAMANA__IN_PARENTS, &v.parent, 1);
    if (l->item[NODEDB_VAMANA__IN_NORMS] > 0)
        nodedb_vamana__stream_words(index, save, NODEDB_VAMANA__IN_NORMS, &norm, 1);
    if (l->item[NODEDB_VAMANA__IN_ROWS] > 0)
        nodedb_vamana__stream_words(index, save, NODEDB_VAMANA__IN_ROWS, v.row, index->row_words);
    if (save->coder != NULL) {
        if (save->make_codes && !is_free) {
            float *turned = (float *)(void *)(code + (save->coder->stride + 63) / 64 * 64);
            (void)nodedb_vamana__encode(index, save->coder, v.vector, v.norm, turned, code);
        }
        nodedb_vamana__stream_write(index, save, NODEDB_VAMANA__IN_CODES,
                                    is_free ? NULL : save->make_codes ? code : v.code, save->coder->stride);
    }
    nodedb_vamana__save_record(index, save, slot, &v);
    if (v.state == NODEDB_VAMANA__LIVE) {
        uint64_t mask = l->places - 1, at = nodedb_mix64(v.id) & mask;
        while (save->table[at] != NODEDB_VAMANA__NONE) at = (at + 1) & mask;
        save->table[at] = slot;
    }
    save->next = slot + 1;
}

/* After the last slot: writes the means, and the last blocks of all sections by slots. */
static void nodedb_vamana__save_tails(const nodedb_vamana *index, nodedb_vamana__save_state *save) {
    const nodedb_vamana__coder *c[2];
    c[0] = save->coder, c[1] = save->recoder;
    for (uint32_t i = 0; i < 2; i++)
        if (c[i] != NULL)
            nodedb_vamana__stream_words(index, save, NODEDB_VAMANA__IN_MEANS, (const uint32_t *)(void *)c[i]->mean,
                                        index->dim);
    for (int section = 0; section <= NODEDB_VAMANA__IN_RECORDS; section++) {
        if (save->streams[section].used > 0) nodedb_vamana__stream_flush(index, save, section);
        assert(save->error != 0 || save->streams[section].offset == save->layout.at[section + 1]);
    }
}

/* Writes one group of checksums, both copies. */
static void nodedb_vamana__save_group(const nodedb_vamana *index, nodedb_vamana__save_state *save, uint64_t group) {
    uint64_t from = group * NODEDB_VAMANA__SUMS_PER_BLOCK;
    uint8_t *block = save->streams[NODEDB_VAMANA__IN_SUMS].buffer;
    for (uint64_t i = 0; i < NODEDB_VAMANA__SUMS_PER_BLOCK; i++)
        nodedb_put_u32(block + 4 * i, from + i < save->layout.blocks ? save->sums[from + i] : 0);
    nodedb_put_u32(block + NODEDB_VAMANA__BLOCK - 4, nodedb_vamana__sum_of_group(block, (size_t)group));
    for (int copy = 0; copy < 2 && save->error == 0; copy++)
        save->error = nodedb__write_all(&index->io, save->fd, block, NODEDB_VAMANA__BLOCK,
                                        save->layout.at[NODEDB_VAMANA__IN_SUMS + copy] +
                                            group * NODEDB_VAMANA_BLOCK_BYTES);
}

static void nodedb_vamana__put_training(const nodedb_vamana__training *t, uint8_t *h) {
    uint32_t i;
    nodedb_put_u32(h + NODEDB_VAMANA__AT_TRAINING_SLOTS, t->slots);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_TRAINING_AT, t->at);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_TRAINING_SAMPLED, t->sampled);
    nodedb_vamana__put_f64(h + NODEDB_VAMANA__AT_TRAINING_SQUARES, t->squares);
    for (i = 0; i < NODEDB_VAMANA__STEPS; i++)
        nodedb_vamana__put_f64(h + NODEDB_VAMANA__AT_TRAINING_ERRORS + 8 * i, t->errors[i]);
}

static void nodedb_vamana__fill_header(const nodedb_vamana *index, const nodedb_vamana__save_state *save,
                                       nodedb_vamana_layout kind, uint8_t *h) {
    const nodedb_vamana__arrays *a = index->arrays;
    int i;
    memset(h, 0, NODEDB_VAMANA__BLOCK);
    memcpy(h, NODEDB_VAMANA__MAGIC, 8);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_VERSION, NODEDB_VAMANA_FORMAT_VERSION);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_DIM, index->dim);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_TYPE, (uint32_t)index->type);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_METRIC, (uint32_t)index->metric);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_DEGREE, index->degree);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_BEAM_BUILD, index->beam_build);
    nodedb_vamana__put_f32(h + NODEDB_VAMANA__AT_ALPHA, index->alpha);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_ENTRY, a->entry);
    nodedb_put_u64(h + NODEDB_VAMANA__AT_SEED, index->seed);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_SLOTS, a->slots);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_LIVE, index->live);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_REMOVED, index->removed);
    for (i = 0; i <= NODEDB_VAMANA__SECTIONS; i++)
        nodedb_put_u64(h + NODEDB_VAMANA__AT_OFFSETS + 8 * i, save->layout.at[i]);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_PASSES, index->passes);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE, (uint32_t)index->code);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_BITS, save->coder == NULL ? 0 : save->coder->bits);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_RESIDENT, save->coder != NULL && !save->make_codes ? 1 : 0);
    nodedb_vamana__put_f32(h + NODEDB_VAMANA__AT_STEP, save->coder == NULL ? 0 : save->coder->step);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE_LIVE, index->code_live);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE_INSERTED, index->code_inserted);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE_CLIPPED, index->code_clipped);
    nodedb_put_u64(h + NODEDB_VAMANA__AT_CODE_DUE, index->code_due);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_LAYOUT, (uint32_t)kind);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_FIRST_FREE, index->first_free);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_COLOUR, index->colour);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_SWEEP, (uint32_t)index->sweep);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_SWEEP_AT, index->sweep == NODEDB_VAMANA__IDLE ? 0 : index->sweep_at);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_RECODE_BITS, save->recoder == NULL ? 0 : save->recoder->bits);
    nodedb_vamana__put_f32(h + NODEDB_VAMANA__AT_RECODE_STEP, save->recoder == NULL ? 0 : save->recoder->step);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_RECODE_AT, save->recoder == NULL ? 0 : index->recode_at);
    for (i = 0; i < (int)NODEDB_VAMANA__STARTS_MAX; i++)
        nodedb_put_u32(h + NODEDB_VAMANA__AT_STARTS + 4 * i, a->starts[i]);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_SLACK, save->coder == NULL ? 0 : save->coder->slack);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_ZEROS, a->zeros ? 1 : 0);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE_ASKED, index->code_asked);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_CODE_MISSED, index->code_missed);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_JUDGE_AT, save->recoder == NULL ? 0 : index->judge_at);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_BEAM_NOW, index->beam_adapts ? index->beam_now : 0);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_BEAM_ASKED, index->beam_asked);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_BEAM_MISSED, index->beam_missed);
    for (i = 0; i <= (int)NODEDB_VAMANA__SLACK_MAX && save->recoder != NULL; i++)
        nodedb_put_u16(h + NODEDB_VAMANA__AT_DISPLACED + 2 * i, index->displaced[i]);
    if (save->recoder != NULL && !nodedb_vamana__is_trained(save->recoder))
        nodedb_vamana__put_training(&index->training, h);
    nodedb_put_u32(h + NODEDB_VAMANA__AT_HEADER_SUM, nodedb_crc32c(0, h, NODEDB_VAMANA__AT_HEADER_SUM));
}

/* Syncs the directory of `path`. */
static int nodedb_vamana__sync_directory(const nodedb_io *io, const char *path, char *scratch) {
    char *slash;
    int fd, error;
    memcpy(scratch, path, strlen(path) + 1);
    slash = strrchr(scratch, '/');
    if (slash == NULL) memcpy(scratch, ".", 2);
    else slash[slash == scratch ? 1 : 0] = 0;
    fd = io->open(io->ctx, scratch, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return fd;
    error = io->sync(io->ctx, fd);
    (void)io->close(io->ctx, fd);
    return error;
}

static size_t nodedb_vamana__save_scratch_bytes(const nodedb_vamana *index) {
    return nodedb_vamana__code_stride(index->dim, 8) + 64 + index->dim * sizeof(float);
}

/* Frees all that a save holds, and removes its temporary file if it is still open. */
static void nodedb_vamana__save_free(nodedb_vamana *index, nodedb_vamana__save_state *save) {
    const nodedb_allocator *m = &index->allocator;
    if (save == NULL) return;
    if (save->fd >= 0) {
        (void)index->io.close(index->io.ctx, save->fd);
        (void)index->io.unlink(index->io.ctx, save->temporary);
    }
    if (save->old_fd >= 0) (void)index->io.close(index->io.ctx, save->old_fd);
    if (save->frozen != NULL) nodedb_vamana__release(index, save->frozen, save->frozen_count, save->frozen_stride);
    nodedb_vamana__kept_free(index, &save->kept);
    nodedb_vamana__free_coder(index, save->coder);
    nodedb_vamana__free_coder(index, save->recoder);
    nodedb__release(m, save->buffers, NODEDB_VAMANA__SECTIONS * NODEDB_VAMANA__STREAM_BYTES);
    nodedb__release(m, save->scratch, nodedb_vamana__save_scratch_bytes(index));
    nodedb__release(m, save->header, NODEDB_VAMANA__BLOCK);
    nodedb__release(m, save->table, (size_t)save->layout.places * sizeof *save->table);
    nodedb__release(m, save->sums, (size_t)(save->layout.blocks + 1) * sizeof *save->sums);
    nodedb__release(m, save->path, 2 * save->path_bytes);
    nodedb__release(m, save, sizeof *save);
    index->save = NULL;
}

static nodedb_vamana__coder *nodedb_vamana__copy_coder(const nodedb_vamana *index, const nodedb_vamana__coder *coder) {
    nodedb_vamana__coder *c = coder == NULL ? NULL : nodedb_vamana__new_coder(index, coder->bits);
    if (c == NULL) return NULL;
    c->step = coder->step, c->slack = coder->slack;
    memcpy(c->mean, coder->mean, index->dim * sizeof *c->mean);
    return c;
}

/* Allocates a save of the index as it is now; false: no memory. */
static bool nodedb_vamana__save_prepare(nodedb_vamana *index, nodedb_vamana__save_state *save,
                                        nodedb_vamana_layout kind, const char *path) {
    const nodedb_allocator *m = &index->allocator;
    const nodedb_vamana__arrays *a = index->arrays;
    save->fd = save->old_fd = -1, save->slots = a->slots, save->make_codes = a->codes == NULL && index->live > 0;
    if (save->make_codes) save->coder = nodedb_vamana__train(index, 8);
    if (save->make_codes && save->coder != NULL) save->coder->slack = NODEDB_VAMANA__SLACK_OF_FILE;
    else if (index->live > 0) save->coder = nodedb_vamana__copy_coder(index, a->coder);
    save->recoder = nodedb_vamana__copy_coder(index, index->recoder);
    if (index->live > 0 && save->coder == NULL) return false;
    if (index->recoder != NULL && save->recoder == NULL) return false;
    save->layout = nodedb_vamana__layout_of(index, kind, save->coder == NULL ? 0 : save->coder->bits,
                                            save->recoder == NULL ? 0 : save->recoder->bits, a->slots);
    save->kept.stride = (sizeof(nodedb_vamana__slot_view) + index->stride + index->row_words * sizeof(uint32_t) +
                         (save->coder == NULL ? 0 : save->coder->stride) + 15) / 16 * 16;
    save->path_bytes = strlen(path) + 5;
    save->path = (char *)nodedb__alloc(m, 2 * save->path_bytes, 1);
    save->buffers = (uint8_t *)nodedb__alloc(m, NODEDB_VAMANA__SECTIONS * NODEDB_VAMANA__STREAM_BYTES,
                                             NODEDB_VAMANA__BLOCK);
    save->scratch = (uint8_t *)nodedb__alloc(m, nodedb_vamana__save_scratch_bytes(index), NODEDB_CACHE_LINE_BYTES);
    save->header = (uint8_t *)nodedb__alloc(m, NODEDB_VAMANA__BLOCK, NODEDB_VAMANA__BLOCK);
    if (save->layout.blocks < SIZE_MAX / 8 && save->layout.places < SIZE_MAX / 8) {
        save->table = (uint32_t *)nodedb__alloc(m, (size_t)save->layout.places * sizeof *save->table,
                                                NODEDB_CACHE_LINE_BYTES);
        save->sums = (uint32_t *)nodedb__alloc(m, (size_t)(save->layout.blocks + 1) * sizeof *save->sums,
                                               NODEDB_CACHE_LINE_BYTES);
    }
    if (save->path == NULL || save->buffers == NULL || save->scratch == NULL || save->header == NULL ||
        save->table == NULL || save->sums == NULL)
        return false;
    memcpy(save->path, path, save->path_bytes - 4);
    save->temporary = save->path + save->path_bytes;
    memcpy(save->temporary, path, save->path_bytes - 5);
    memcpy(save->temporary + save->path_bytes - 5, ".tmp", 5);
    for (int i = 0; i < NODEDB_VAMANA__SECTIONS; i++) {
        save->streams[i].buffer = save->buffers + (size_t)i * NODEDB_VAMANA__STREAM_BYTES;
        save->streams[i].offset = save->layout.at[i];
    }
    nodedb_vamana__fill_header(index, save, kind, save->header);
    return true;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_save_begin(nodedb_vamana *index, const char *path,
                                                         nodedb_vamana_layout layout, nodedb_error *err) {
    nodedb_status status = nodedb_vamana__check_writable(index, err);
    nodedb_vamana__save_state *save;
    int64_t size;
    if (status != NODEDB_OK) return status;
    if (path == NULL || path[0] == 0 || (layout != NODEDB_VAMANA_RESIDENT && layout != NODEDB_VAMANA_PACKED))
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "path is NULL or empty, or the layout is unknown");
    if (index->save != NULL)
        return nodedb_fail(err, NODEDB_ERR_STATE, 0, "%s is being saved already", index->save->path);
    save = (nodedb_vamana__save_state *)nodedb__alloc_zero(&index->allocator, sizeof *save, NODEDB_CACHE_LINE_BYTES);
    if (save == NULL || !nodedb_vamana__save_prepare(index, save, layout, path)) {
        nodedb_vamana__save_free(index, save);
        return nodedb_vamana__no_memory(err, "save", path);
    }
    save->fd = index->io.open(index->io.ctx, save->temporary, O_WRONLY | O_CREAT, 0644);
    size = save->fd < 0 ? save->fd : index->io.size(index->io.ctx, save->fd);
    if (size < 0) {
        status = nodedb_vamana__file_error(err, nodedb_io_status((int)-size), (int)-size, 0, save->temporary,
                                           "cannot be made");
        nodedb_vamana__save_free(index, save);
        return status;
    }
    save->stale = (uint64_t)size;
    index->save = save;
    return NODEDB_OK;
}

/* Truncates a file of *bytes by up to TRUNCATE_BYTES. 0 or -errno. */
static int nodedb_vamana__truncate_some(const nodedb_io *io, int fd, uint64_t *bytes) {
    *bytes -= *bytes < NODEDB_VAMANA__TRUNCATE_BYTES ? *bytes : NODEDB_VAMANA__TRUNCATE_BYTES;
    return io->truncate(io->ctx, fd, *bytes);
}

/* True if this file has no name, and no one else has it open or mapped: the system grants a write lease (fcntl(2),
 * F_SETLEASE) only then. False with an I/O struct of the caller's, as only the system can tell. */
static bool nodedb_vamana__is_unused(const nodedb_io *io, int fd) {
    struct stat st;
    if (io->open != nodedb__posix_open || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_nlink != 0) return false;
    if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0) return false;
    return fcntl(fd, F_SETLEASE, F_UNLCK) == 0;
}

/* Renames the file over the old one. Freeing an old file of 500 MB takes a file system 200 ms, in the rename or in the
 * last close. So the old file is held open here and truncated afterwards, a piece at a time. */
static int nodedb_vamana__save_rename(const nodedb_vamana *index, nodedb_vamana__save_state *save) {
    const nodedb_io *io = &index->io;
    int error = io->close(io->ctx, save->fd);
    save->fd = -1;
    if (io->open == nodedb__posix_open) save->old_fd = io->open(io->ctx, save->path, O_RDWR | O_NONBLOCK, 0);
    if (error == 0) error = io->rename(io->ctx, save->temporary, save->path);
    if (error != 0) (void)io->unlink(io->ctx, save->temporary);
    return error;
}

/* Truncates the old file by a piece, if no one else uses it. The new file is durable by now. */
static void nodedb_vamana__save_cut_old(const nodedb_vamana *index, nodedb_vamana__save_state *save) {
    const nodedb_io *io = &index->io;
    if (save->old_fd >= 0 && save->stale == 0 && nodedb_vamana__is_unused(io, save->old_fd)) {
        int64_t size = io->size(io->ctx, save->old_fd);
        save->stale = size > 0 ? (uint64_t)size : 0;
    }
    if (save->stale > 0 && nodedb_vamana__truncate_some(io, save->old_fd, &save->stale) != 0) save->stale = 0;
    if (save->stale == 0) save->phase = NODEDB_VAMANA__SAVE_DONE;
}

/* One step, for the budget of one slot. True: it waited for the disk. */
static bool nodedb_vamana__save_some(const nodedb_vamana *index, nodedb_vamana__save_state *save) {
    const nodedb_vamana__file_layout *l = &save->layout;
    const nodedb_io *io = &index->io;
    uint64_t some = l->places - save->at;
    if (save->written >= NODEDB_VAMANA__SYNC_BYTES) {
        save->error = io->sync(io->ctx, save->fd), save->written = 0;
        return true;
    }
    if (some > NODEDB_VAMANA__WORDS_PER_STEP) some = NODEDB_VAMANA__WORDS_PER_STEP;
    switch (save->phase) {
    case NODEDB_VAMANA__SAVE_TRUNCATES:
        if (save->stale == 0) save->phase = NODEDB_VAMANA__SAVE_CLEARS;
        else save->error = nodedb_vamana__truncate_some(io, save->fd, &save->stale);
        return save->phase == NODEDB_VAMANA__SAVE_TRUNCATES;
    case NODEDB_VAMANA__SAVE_CLEARS:
        memset(save->table + save->at, 0xFF, (size_t)some * sizeof *save->table); /* NONE */
        save->at += some;
        if (save->at == l->places) save->phase = NODEDB_VAMANA__SAVE_SLOTS, save->at = 0;
        return false;
    case NODEDB_VAMANA__SAVE_SLOTS:
        if (save->next < save->slots) nodedb_vamana__save_slot(index, save, save->next);
        if (save->next < save->slots) return false;
        nodedb_vamana__save_tails(index, save);
        save->phase = NODEDB_VAMANA__SAVE_TABLE;
        return false;
    case NODEDB_VAMANA__SAVE_TABLE:
        nodedb_vamana__stream_words(index, save, NODEDB_VAMANA__IN_TABLE, save->table + save->at, (size_t)some);
        save->at += some;
        if (save->at < l->places) return false;
        if (save->streams[NODEDB_VAMANA__IN_TABLE].used > 0)
            nodedb_vamana__stream_flush(index, save, NODEDB_VAMANA__IN_TABLE);
        save->phase = NODEDB_VAMANA__SAVE_SUMS, save->at = 0;
        return false;
    case NODEDB_VAMANA__SAVE_SUMS:
        nodedb_vamana__save_group(index, save, save->at++);
        if (save->at * NODEDB_VAMANA__SUMS_PER_BLOCK >= l->blocks) save->phase = NODEDB_VAMANA__SAVE_HEADERS;
        return false;
    case NODEDB_VAMANA__SAVE_HEADERS:
        for (int copy = 0; copy < 2 && save->error == 0; copy++)
            save->error = nodedb__write_all(io, save->fd, save->header, NODEDB_VAMANA__BLOCK,
                                            copy == 0 ? l->at[NODEDB_VAMANA__IN_HEADER_AGAIN] : 0);
        if (save->error == 0) save->error = io->sync(io->ctx, save->fd);
        save->phase = NODEDB_VAMANA__SAVE_RENAMES, save->written = 0;
        return true;
    case NODEDB_VAMANA__SAVE_RENAMES:
        save->error = nodedb_vamana__save_rename(index, save);
        save->phase = NODEDB_VAMANA__SAVE_SYNCS_NAME;
        return true;
    case NODEDB_VAMANA__SAVE_SYNCS_NAME:
        save->error = nodedb_vamana__sync_directory(io, save->path, save->temporary);
        save->phase = NODEDB_VAMANA__SAVE_TRUNCATES_OLD;
        return true;
    default:
        nodedb_vamana__save_cut_old(index, save);
        return true;
    }
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_save_step(nodedb_vamana *index, uint64_t budget, bool *more,
                                                        nodedb_error *err) {
    nodedb_vamana__save_state *save = index == NULL ? NULL : index->save;
    nodedb_status status = NODEDB_OK;
    int error;
    if (more != NULL) *more = false;
    if (index == NULL || more == NULL || budget == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "index or more is NULL, or the budget is 0");
    if (save == NULL) return nodedb_fail(err, NODEDB_ERR_STATE, 0, "no save is under way");
    while (budget-- > 0 && save->phase != NODEDB_VAMANA__SAVE_DONE && save->error == 0)
        if (nodedb_vamana__save_some(index, save)) break;
    error = save->error;
    if (error == 0 && save->phase != NODEDB_VAMANA__SAVE_DONE) {
        *more = true;
        return NODEDB_OK;
    }
    if (error == -ENOMEM)
        status = nodedb_vamana__no_memory(err, "go on saving", save->path);
    else if (error < 0 && save->phase == NODEDB_VAMANA__SAVE_TRUNCATES_OLD)
        status = nodedb_vamana__file_error(err, nodedb_io_status(-error), -error, 0, save->path,
                                           "its directory cannot be synced");
    else if (error < 0)
        status = nodedb_vamana__file_error(err, nodedb_io_status(-error), -error, 0, save->temporary,
                                           "cannot be written, synced or renamed");
    nodedb_vamana__save_free(index, save);
    return status;
}

NODEDB_VAMANA_API void nodedb_vamana_save_cancel(nodedb_vamana *index) {
    if (index != NULL) nodedb_vamana__save_free(index, index->save);
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_save(nodedb_vamana *index, const char *path, nodedb_vamana_layout layout,
                                                   nodedb_error *err) {
    nodedb_status status = nodedb_vamana_save_begin(index, path, layout, err);
    bool more = true;
    while (status == NODEDB_OK && more) status = nodedb_vamana_save_step(index, UINT64_MAX, &more, err);
    return status;
}

/* ---- reading a header -------------------------------------------------------------------------------------------- */

/* The counts of a header. Lives while a file is opened. */
typedef struct nodedb_vamana__counts {
    uint32_t slots, live, removed, entry, bits, recode_bits, recode_at, slack;
    float step, recode_step;
    nodedb_vamana_layout layout;
    bool resident; /* the codes are the index's own, and not made for disk mode only */
} nodedb_vamana__counts;

static nodedb_status nodedb_vamana__header_error(nodedb_error *err, const char *path, uint64_t offset,
                                                 const char *what) {
    return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, offset, path, what);
}

static bool nodedb_vamana__is_header(const uint8_t *h) {
    return memcmp(h, NODEDB_VAMANA__MAGIC, 8) == 0 &&
           nodedb_crc32c(0, h, NODEDB_VAMANA__AT_HEADER_SUM) == nodedb_get_u32(h + NODEDB_VAMANA__AT_HEADER_SUM);
}

/* Reads the header, or its copy at the end of the file if it is damaged. *which: 0 the header, 1 the copy. */
static nodedb_status nodedb_vamana__read_header(const nodedb_io *io, int fd, const char *path, uint8_t *h,
                                                uint64_t *file_size, int *which, nodedb_error *err) {
    int64_t size = io->size(io->ctx, fd);
    nodedb_error first;
    nodedb_status status = NODEDB_OK;
    if (size < 0)
        return nodedb_vamana__file_error(err, NODEDB_ERR_IO, (int)-size, 0, path, "has no size");
    *file_size = (uint64_t)size;
    if (size < (int64_t)NODEDB_VAMANA__BLOCK)
        return nodedb_vamana__header_error(err, path, (uint64_t)size, "the file ends early");
    for (*which = 0; *which < 2; ++*which) {
        uint64_t at = *which == 0 ? 0 : (uint64_t)size / NODEDB_VAMANA_BLOCK_BYTES * NODEDB_VAMANA_BLOCK_BYTES -
                                            NODEDB_VAMANA_BLOCK_BYTES;
        int error = nodedb__read_all(io, fd, h, NODEDB_VAMANA__BLOCK, at);
        if (error == 0 && nodedb_vamana__is_header(h)) return NODEDB_OK;
        if (*which == 1) break;
        if (error < 0)
            status = nodedb_vamana__file_error(&first, nodedb_io_status(-error), -error, 0, path, "cannot be read");
        else if (memcmp(h, NODEDB_VAMANA__MAGIC, 8) != 0)
            status = nodedb_vamana__header_error(&first, path, 0, "is not a vector index: no NDBVAMAN");
        else status = nodedb_vamana__header_error(&first, path, 0, "the header does not match its checksum");
    }
    if (err != NULL) *err = first;
    return status;
}

/* Decodes the parameters of a header and checks their ranges. */
static nodedb_status nodedb_vamana__read_parameters(const uint8_t *h, const char *path, nodedb_vamana_config *c,
                                                    nodedb_error *err) {
    uint32_t type = nodedb_get_u32(h + NODEDB_VAMANA__AT_TYPE), code = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE),
             metric = nodedb_get_u32(h + NODEDB_VAMANA__AT_METRIC);
    nodedb_error reason;
    c->dim = nodedb_get_u32(h + NODEDB_VAMANA__AT_DIM);
    c->type = type == 0 ? NODEDB_VAMANA_F32 : type == 1 ? NODEDB_VAMANA_U8 : NODEDB_VAMANA_I8;
    c->metric = metric == 0 ? NODEDB_VAMANA_L2 : metric == 1 ? NODEDB_VAMANA_IP : NODEDB_VAMANA_COSINE;
    c->degree = nodedb_get_u32(h + NODEDB_VAMANA__AT_DEGREE);
    c->beam_build = nodedb_get_u32(h + NODEDB_VAMANA__AT_BEAM_BUILD);
    c->alpha = nodedb_vamana__get_f32(h + NODEDB_VAMANA__AT_ALPHA);
    c->seed = nodedb_get_u64(h + NODEDB_VAMANA__AT_SEED);
    c->passes = nodedb_get_u32(h + NODEDB_VAMANA__AT_PASSES);
    c->code = code == 0   ? NODEDB_VAMANA_CODE_AUTO
              : code == 1 ? NODEDB_VAMANA_CODE_NONE
              : code == 2 ? NODEDB_VAMANA_CODE_8BIT
                          : NODEDB_VAMANA_CODE_4BIT;
    if (type > 2 || metric > 2 || code > 3 || c->passes == 0 || c->degree == 0 || c->beam_build == 0 ||
        nodedb_vamana__check_config(c, &reason) != NODEDB_OK)
        return nodedb_vamana__header_error(err, path, NODEDB_VAMANA__AT_DIM, "a parameter is out of its range");
    return NODEDB_OK;
}

static bool nodedb_vamana__is_step(float step) { return step > 1e-35f && step < 1e20f; }

static nodedb_vamana__training nodedb_vamana__get_training(const uint8_t *h) {
    nodedb_vamana__training t;
    t.slots = nodedb_get_u32(h + NODEDB_VAMANA__AT_TRAINING_SLOTS);
    t.at = nodedb_get_u32(h + NODEDB_VAMANA__AT_TRAINING_AT);
    t.sampled = nodedb_get_u32(h + NODEDB_VAMANA__AT_TRAINING_SAMPLED);
    t.squares = nodedb_vamana__get_f64(h + NODEDB_VAMANA__AT_TRAINING_SQUARES);
    for (uint32_t i = 0; i < NODEDB_VAMANA__STEPS; i++)
        t.errors[i] = nodedb_vamana__get_f64(h + NODEDB_VAMANA__AT_TRAINING_ERRORS + 8 * i);
    return t;
}

/* True if the training in the header is possible for the coder that was being made. */
static bool nodedb_vamana__is_training(const nodedb_vamana *index, const uint8_t *h, const nodedb_vamana__counts *n) {
    nodedb_vamana__training t = nodedb_vamana__get_training(h);
    uint64_t mean_of = nodedb_vamana__sample_size(index, t.slots);
    bool good = t.squares >= 0 && t.squares < 1e300;
    if (n->recode_bits == 0 || nodedb_vamana__is_step(n->recode_step)) return true;
    for (uint32_t i = 0; i < NODEDB_VAMANA__STEPS; i++) good = good && t.errors[i] >= 0 && t.errors[i] < 1e300;
    return good && n->live > 0 && n->recode_step == 0 && n->recode_at == 0 && t.slots > 0 && t.slots <= n->slots &&
           t.at < mean_of + nodedb_vamana__step_sample_size(index, t.slots) && t.sampled <= mean_of &&
           (t.at < mean_of || (t.sampled > 0 && t.squares > 0));
}
static bool nodedb_vamana__is_bits(uint32_t bits) { return bits == 0 || bits == 4 || bits == 8; }

/* Decodes the counts of a header. They must fit each other and the size of the file. *l: the layout that follows. */
static nodedb_status nodedb_vamana__read_counts(const nodedb_vamana *index, const uint8_t *h, const char *path,
                                                uint64_t file_size, nodedb_vamana__counts *n,
                                                nodedb_vamana__file_layout *l, nodedb_error *err) {
    uint32_t resident = nodedb_get_u32(h + NODEDB_VAMANA__AT_RESIDENT),
             beam = nodedb_get_u32(h + NODEDB_VAMANA__AT_BEAM_NOW),
             kind = nodedb_get_u32(h + NODEDB_VAMANA__AT_LAYOUT),
             free_at = nodedb_get_u32(h + NODEDB_VAMANA__AT_FIRST_FREE),
             colour = nodedb_get_u32(h + NODEDB_VAMANA__AT_COLOUR),
             sweep = nodedb_get_u32(h + NODEDB_VAMANA__AT_SWEEP),
             sweep_at = nodedb_get_u32(h + NODEDB_VAMANA__AT_SWEEP_AT);
    bool good;
    memset(l, 0, sizeof *l);
    n->slots = nodedb_get_u32(h + NODEDB_VAMANA__AT_SLOTS);
    n->live = nodedb_get_u32(h + NODEDB_VAMANA__AT_LIVE);
    n->removed = nodedb_get_u32(h + NODEDB_VAMANA__AT_REMOVED);
    n->entry = nodedb_get_u32(h + NODEDB_VAMANA__AT_ENTRY);
    n->bits = nodedb_get_u32(h + NODEDB_VAMANA__AT_BITS);
    n->step = nodedb_vamana__get_f32(h + NODEDB_VAMANA__AT_STEP);
    n->recode_bits = nodedb_get_u32(h + NODEDB_VAMANA__AT_RECODE_BITS);
    n->recode_step = nodedb_vamana__get_f32(h + NODEDB_VAMANA__AT_RECODE_STEP);
    n->recode_at = nodedb_get_u32(h + NODEDB_VAMANA__AT_RECODE_AT);
    n->slack = nodedb_get_u32(h + NODEDB_VAMANA__AT_SLACK);
    n->resident = resident != 0;
    n->layout = kind == 0 ? NODEDB_VAMANA_RESIDENT : NODEDB_VAMANA_PACKED;
    good = n->slots <= NODEDB_VAMANA_MAX_VECTORS && (uint64_t)n->live + n->removed <= n->slots && kind <= 1 &&
           (n->live == 0) == (n->entry == NODEDB_VAMANA__NONE) && (n->live == 0 || n->entry < n->slots) &&
           resident <= (n->bits != 0 ? 1u : 0u) &&
           nodedb_vamana__is_bits(n->bits) && nodedb_vamana__is_bits(n->recode_bits) &&
           (n->bits == 0) == (n->live == 0) && (n->bits == 0 || nodedb_vamana__is_step(n->step)) &&
           nodedb_vamana__is_training(index, h, n) && n->recode_at <= n->slots &&
           (free_at == NODEDB_VAMANA__NONE || free_at < n->slots) && sweep <= NODEDB_VAMANA__FREEING &&
           n->slack <= NODEDB_VAMANA__SLACK_MAX && nodedb_get_u32(h + NODEDB_VAMANA__AT_ZEROS) <= 1 &&
           nodedb_get_u32(h + NODEDB_VAMANA__AT_JUDGE_AT) <= NODEDB_VAMANA__JUDGES &&
           (beam == 0 || (beam >= index->beam_build && beam / NODEDB_VAMANA__BEAM_GROWS <= index->beam_build)) &&
           (colour == NODEDB_VAMANA__REMOVED || colour == NODEDB_VAMANA__REMOVED + 1u) && sweep_at <= n->slots;
    for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX && good; i++) {
        uint32_t start = nodedb_get_u32(h + NODEDB_VAMANA__AT_STARTS + 4 * i);
        good = start == NODEDB_VAMANA__NONE || (start < n->slots && n->live > 0);
        for (uint32_t j = 0; j < i && good && start != NODEDB_VAMANA__NONE; j++)
            good = start != nodedb_get_u32(h + NODEDB_VAMANA__AT_STARTS + 4 * j); /* a start may not repeat */
    }
    if (!good)
        return nodedb_vamana__header_error(err, path, NODEDB_VAMANA__AT_SLOTS, "the counts do not fit each other");
    *l = nodedb_vamana__layout_of(index, n->layout, n->bits, n->recode_bits, n->slots);
    for (uint32_t i = 0; i <= NODEDB_VAMANA__SECTIONS && good; i++)
        good = nodedb_get_u64(h + NODEDB_VAMANA__AT_OFFSETS + 8 * i) == l->at[i];
    if (!good)
        return nodedb_vamana__header_error(err, path, NODEDB_VAMANA__AT_OFFSETS,
                                           "the offsets are not those of the counts");
    if (file_size != l->at[NODEDB_VAMANA__SECTIONS])
        return nodedb_vamana__header_error(err, path, file_size, "the file has another size");
    return NODEDB_OK;
}

/* Restores the writer's state from the header. */
static void nodedb_vamana__restore_state(nodedb_vamana *index, const uint8_t *h, const nodedb_vamana__counts *n) {
    index->live = n->live, index->removed = n->removed;
    index->code_live = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE_LIVE);
    index->code_inserted = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE_INSERTED);
    index->code_clipped = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE_CLIPPED);
    index->code_due = nodedb_get_u64(h + NODEDB_VAMANA__AT_CODE_DUE);
    index->code_asked = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE_ASKED);
    index->code_missed = nodedb_get_u32(h + NODEDB_VAMANA__AT_CODE_MISSED);
    index->judge_at = nodedb_get_u32(h + NODEDB_VAMANA__AT_JUDGE_AT);
    index->training = nodedb_vamana__get_training(h);
    for (uint32_t i = 0; i <= NODEDB_VAMANA__SLACK_MAX; i++)
        index->displaced[i] = nodedb_get_u16(h + NODEDB_VAMANA__AT_DISPLACED + 2 * (size_t)i);
    index->beam_now = nodedb_get_u32(h + NODEDB_VAMANA__AT_BEAM_NOW);
    index->beam_adapts = index->beam_now != 0;
    if (!index->beam_adapts) index->beam_now = index->beam_build;
    index->beam_asked = nodedb_get_u32(h + NODEDB_VAMANA__AT_BEAM_ASKED);
    index->beam_missed = nodedb_get_u32(h + NODEDB_VAMANA__AT_BEAM_MISSED);
    index->first_free = nodedb_get_u32(h + NODEDB_VAMANA__AT_FIRST_FREE);
    index->colour = (uint8_t)nodedb_get_u32(h + NODEDB_VAMANA__AT_COLOUR);
    index->sweep = (nodedb_vamana__sweep)nodedb_get_u32(h + NODEDB_VAMANA__AT_SWEEP);
    index->sweep_at = nodedb_get_u32(h + NODEDB_VAMANA__AT_SWEEP_AT);
}

static void nodedb_vamana__free_file(nodedb_vamana *index) {
    nodedb_vamana__file *f = index->file;
    if (f == NULL) return;
    nodedb_vamana__free_disk(index);
    nodedb_vamana__release(index, f->sums, f->group_count * NODEDB_VAMANA__SUMS_PER_BLOCK, sizeof *f->sums);
    nodedb_vamana__release(index, f->groups, f->group_count, 1);
    if (f->fd >= 0) (void)index->io.close(index->io.ctx, f->fd);
    nodedb_vamana__release(index, f->path, f->path_bytes, 1);
    nodedb_vamana__release(index, f, 1, sizeof *f);
    index->file = NULL;
}

/* ---- into memory ------------------------------------------------------------------------------------------------- */

/* Reads a section from front to back and checks each block; damage is an error. Lives for one call. */
typedef struct nodedb_vamana__reader {
    nodedb_vamana *index;
    uint8_t *buffer;            /* STREAM_BYTES */
    uint64_t offset, end;       /* of the next block to read, and of the section */
    size_t at, filled;          /* bytes of the buffer that are used, and that are filled */
    nodedb_error *err;
} nodedb_vamana__reader;

static nodedb_vamana__reader nodedb_vamana__reader_of(nodedb_vamana *index, uint8_t *buffer, nodedb_error *err) {
    nodedb_vamana__reader r;
    memset(&r, 0, sizeof r);
    r.index = index, r.buffer = buffer, r.err = err;
    return r;
}

static void nodedb_vamana__read_from(nodedb_vamana__reader *r, int section) {
    r->offset = r->index->file->layout.at[section], r->end = r->index->file->layout.at[section + 1];
    r->at = 0, r->filled = 0;
}

static nodedb_status nodedb_vamana__read(nodedb_vamana__reader *r, void *to, size_t bytes) {
    uint8_t *p = (uint8_t *)to;
    while (bytes > 0) {
        size_t part, at;
        if (r->at == r->filled) {
            nodedb_status status;
            assert(r->offset < r->end);
            r->filled = NODEDB_VAMANA__STREAM_BYTES;
            if (r->filled > r->end - r->offset) r->filled = (size_t)(r->end - r->offset);
            status = nodedb_vamana__read_at(r->index, r->buffer, r->filled, r->offset, r->err);
            for (at = 0; at < r->filled && status == NODEDB_OK; at += NODEDB_VAMANA__BLOCK)
                status = nodedb_vamana__check_block(r->index, r->offset + at, r->buffer + at, r->err);
            if (status != NODEDB_OK) return status;
            r->offset += r->filled, r->at = 0;
        }
        part = nodedb_vamana__min(r->filled - r->at, bytes);
        memcpy(p, r->buffer + r->at, part);
        p += part, r->at += part, bytes -= part;
    }
    return NODEDB_OK;
}

/* The error for bytes that were read last and that are invalid. */
static nodedb_status nodedb_vamana__invalid_bytes(const nodedb_vamana__reader *r, const char *what) {
    uint64_t offset = r->offset - (r->filled - r->at);
    return nodedb_vamana__file_error(r->err, NODEDB_ERR_CORRUPT, 0, offset, r->index->file->path, what);
}

/* Reads a section by slots. */
static nodedb_status nodedb_vamana__read_section(nodedb_vamana__reader *r, int section, void *to, size_t word) {
    size_t bytes = r->index->arrays->slots * r->index->file->layout.item[section];
    nodedb_status status;
    nodedb_vamana__read_from(r, section);
    status = nodedb_vamana__read(r, to, bytes);
    nodedb_vamana__swap_words(to, bytes, word);
    return status;
}

static nodedb_status nodedb_vamana__read_mean(nodedb_vamana__reader *r, nodedb_vamana__coder *c) {
    nodedb_status status = nodedb_vamana__read(r, c->mean, r->index->dim * sizeof *c->mean);
    uint32_t i;
    nodedb_vamana__swap_words(c->mean, r->index->dim * sizeof *c->mean, 4);
    for (i = 0; i < r->index->dim && status == NODEDB_OK; i++)
        if (!(fabsf(c->mean[i]) <= NODEDB_VAMANA_MAX_LENGTH))
            return nodedb_vamana__invalid_bytes(r, "the mean of a component is out of range");
    return status;
}

/* True if this is a valid vector, in memory order. */
static bool nodedb_vamana__is_vector(const nodedb_vamana *index, const uint8_t *vector) {
    double squares = 0;
    for (uint32_t i = 0; i < index->dim && index->type == NODEDB_VAMANA_F32; i++) {
        float x;
        memcpy(&x, vector + 4 * (size_t)i, 4);
        if (!nodedb_vamana__is_finite(x)) return false;
        squares += (double)x * (double)x;
    }
    return squares <= 1.001 * (double)NODEDB_VAMANA_MAX_LENGTH * (double)NODEDB_VAMANA_MAX_LENGTH;
}

/* A valid row: no edge to itself, no free neighbour, padded with NONE. The row of a free slot holds the next free slot
 * and nothing else. `words`: of the row, at least the degree. */
static bool nodedb_vamana__is_row(const nodedb_vamana *index, uint32_t slot, const uint32_t *row, size_t words) {
    const nodedb_vamana__arrays *a = index->arrays;
    bool is_free = a->states[slot] == NODEDB_VAMANA__FREE,
         leads = a->states[slot] == NODEDB_VAMANA__LIVE || index->sweep != NODEDB_VAMANA__FREEING;
    size_t last = 0;
    for (size_t i = is_free ? 1 : 0; i < words; i++) {
        if (row[i] == NODEDB_VAMANA__NONE) continue;
        if (is_free || i >= index->degree || row[i] >= a->slots || row[i] == slot || last != i ||
            (leads && a->states[row[i]] == NODEDB_VAMANA__FREE))
            return false;
        last = i + 1;
    }
    return true;
}

/* True if all free slots are one chain; `next` of a slot is `stride` words apart. *bad: the last slot of the chain. */
static bool nodedb_vamana__is_chain(const nodedb_vamana *index, const uint32_t *next, size_t stride, uint32_t *bad) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t slot = index->first_free, count = 0, all = a->slots - index->live - index->removed;
    for (*bad = 0; slot != NODEDB_VAMANA__NONE && count <= all; count++) {
        if (slot >= a->slots || a->states[slot] != NODEDB_VAMANA__FREE) return false;
        *bad = slot, slot = next[slot * stride];
    }
    return count == all;
}

/* A check of the tree: each slot's parent in the file, and the last row that holds the slot. Lives for one call. */
typedef struct nodedb_vamana__tree_node {
    uint32_t parent;
    uint32_t last;        /* the last slot whose row holds this one */
} nodedb_vamana__tree_node;

typedef struct nodedb_vamana__tree_check {
    nodedb_vamana__tree_node *nodes;
    uint8_t *held, *good; /* bits by slot: its parent's row holds it; it leads up to the entry */
    size_t bytes;         /* of all three, one block of memory */
    uint32_t twice;       /* a slot whose row holds a slot twice, or NONE */
} nodedb_vamana__tree_check;

static bool nodedb_vamana__tree_check_begin(const nodedb_vamana *index, nodedb_vamana__tree_check *t) {
    size_t slots = index->arrays->slots, bits = slots / 8 + 1;
    t->bytes = (slots + 1) * sizeof *t->nodes + 2 * bits, t->twice = NODEDB_VAMANA__NONE;
    t->nodes = (nodedb_vamana__tree_node *)nodedb__alloc_zero(&index->allocator, t->bytes, sizeof(void *));
    if (t->nodes == NULL) return false;
    t->held = (uint8_t *)(t->nodes + slots + 1), t->good = t->held + bits;
    for (size_t slot = 0; slot < slots; slot++) t->nodes[slot].last = NODEDB_VAMANA__NONE;
    return true;
}

static void nodedb_vamana__tree_check_row(const nodedb_vamana *index, nodedb_vamana__tree_check *t, uint32_t slot,
                                          const uint32_t *row) {
    uint32_t i;
    for (i = 0; i < index->degree && row[i] < index->arrays->slots; i++) {
        if (t->nodes[row[i]].parent == slot) nodedb_vamana__set_bit(t->held, row[i]);
        if (t->nodes[row[i]].last == slot) t->twice = slot;
        t->nodes[row[i]].last = slot;
    }
}

/* After all rows: true if all live slots are one tree under the entry. *bad: a slot that is not in it. */
static bool nodedb_vamana__is_tree(const nodedb_vamana *index, nodedb_vamana__tree_check *t, uint32_t *bad) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t at, steps;
    *bad = t->twice;
    if (t->twice != NODEDB_VAMANA__NONE) return false;
    for (uint32_t slot = 0; slot < a->slots; slot++) {
        uint32_t parent = t->nodes[slot].parent;
        bool child = a->states[slot] == NODEDB_VAMANA__LIVE && slot != a->entry;
        *bad = slot;
        if ((parent != NODEDB_VAMANA__NONE) != child) return false;
        if (child && (parent >= a->slots || a->states[parent] != NODEDB_VAMANA__LIVE)) return false;
        if (child && !nodedb_vamana__bit(t->held, slot)) return false;
    }
    for (uint32_t slot = 0; slot < a->slots; slot++) {
        if (a->states[slot] != NODEDB_VAMANA__LIVE) continue;
        *bad = slot;
        for (at = slot, steps = 0; at != a->entry && !nodedb_vamana__bit(t->good, at); at = t->nodes[at].parent)
            if (++steps > index->live) return false; /* a cycle */
        for (at = slot; at != a->entry && !nodedb_vamana__bit(t->good, at); at = t->nodes[at].parent)
            nodedb_vamana__set_bit(t->good, at);
    }
    return true;
}

/* Reads and checks exact vectors, and in the packed layout the rows. `keep`: puts them into the index. Else `record`
 * holds one at a time, the first words of the rows go to `next` (unless NULL), and `tree` checks the rows. */
static nodedb_status nodedb_vamana__read_records(nodedb_vamana__reader *r, uint8_t *record, uint32_t *next,
                                                 nodedb_vamana__tree_check *tree, bool keep) {
    nodedb_vamana *index = r->index;
    const nodedb_vamana__file_layout *l = &index->file->layout;
    nodedb_vamana__read_from(r, NODEDB_VAMANA__IN_RECORDS);
    for (uint32_t slot = 0; slot < index->arrays->slots; slot++) {
        nodedb_status status = nodedb_vamana__read(r, record, l->record_bytes);
        if (status != NODEDB_OK) return status;
        nodedb_vamana__swap_record(index, l, record);
        if (!nodedb_vamana__is_vector(index, record))
            return nodedb_vamana__invalid_bytes(r, "a component is not a finite number, or a vector too long");
        if (keep) memcpy(nodedb_vamana__vector(index, index->arrays, slot), record, l->vector_bytes);
        if (keep && l->row_at > 0)
            memcpy(nodedb_vamana__row(index, index->arrays, slot), record + l->row_at, index->degree * (size_t)4);
        if (!keep && l->row_at > 0) {
            const uint32_t *row = (const uint32_t *)(const void *)(record + l->row_at);
            if (!nodedb_vamana__is_row(index, slot, row, index->degree))
                return nodedb_vamana__invalid_bytes(r, "a neighbour is not a vector");
            if (next != NULL) next[slot] = row[0];
            nodedb_vamana__tree_check_row(index, tree, slot, row);
        }
        if (l->records_per_block == 0 || (slot + 1) % l->records_per_block == 0)
            r->at = (r->at + NODEDB_VAMANA__BLOCK - 1) / NODEDB_VAMANA__BLOCK * NODEDB_VAMANA__BLOCK;
    }
    return NODEDB_OK;
}

static nodedb_status nodedb_vamana__invalid_slot(const nodedb_vamana *index, int section, uint32_t slot,
                                                 const char *what, nodedb_error *err) {
    const nodedb_vamana__file_layout *l = &index->file->layout;
    return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, l->at[section] + slot * (uint64_t)l->item[section],
                                     index->file->path, what);
}

/* Checks that states, norms and `rows` (if they are in memory) of all slots fit each other and the header. */
static nodedb_status nodedb_vamana__check_slots(const nodedb_vamana *index, bool rows, nodedb_error *err) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t slot, live = 0, removed = 0;
    int at_rows = index->file->layout.row_at > 0 ? NODEDB_VAMANA__IN_STATES : NODEDB_VAMANA__IN_ROWS;
    for (slot = 0; slot < a->slots; slot++) {
        if (a->states[slot] > NODEDB_VAMANA__REMOVED + 1)
            return nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_STATES, slot, "a slot has no known state", err);
        live += a->states[slot] == NODEDB_VAMANA__LIVE, removed += a->states[slot] >= NODEDB_VAMANA__REMOVED;
        if (a->norms != NULL && (!(a->norms[slot] >= 0) || !nodedb_vamana__is_finite(a->norms[slot])))
            return nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_NORMS, slot, "a norm is not a length", err);
    }
    if (live != index->live || removed != index->removed)
        return nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_STATES, 0,
                                           "the states are not as many as the header says", err);
    if (live > 0 && a->states[a->entry] != NODEDB_VAMANA__LIVE)
        return nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_STATES, a->entry, "the entry is not a vector", err);
    for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX; i++)
        if (a->starts[i] != NODEDB_VAMANA__NONE && a->states[a->starts[i]] != NODEDB_VAMANA__LIVE)
            return nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_STATES, a->starts[i], "a start is not a vector",
                                               err);
    for (slot = 0; slot < a->slots && rows; slot++)
        if (!nodedb_vamana__is_row(index, slot, nodedb_vamana__row(index, a, slot), index->row_words))
            return nodedb_vamana__invalid_slot(index, at_rows, slot, "a neighbour is not a vector", err);
    if (rows && !nodedb_vamana__is_chain(index, a->rows, index->row_words, &slot))
        return nodedb_vamana__invalid_slot(index, at_rows, slot, "the free slots are not one chain", err);
    return NODEDB_OK;
}

/* Makes the coders of the header; their means are still to be read. */
static nodedb_status nodedb_vamana__make_coders(nodedb_vamana *index, const nodedb_vamana__counts *n,
                                                nodedb_vamana__coder **coder, nodedb_vamana__coder **recoder,
                                                nodedb_error *err) {
    *coder = n->bits == 0 ? NULL : nodedb_vamana__new_coder(index, n->bits);
    *recoder = n->recode_bits == 0 ? NULL : nodedb_vamana__new_coder(index, n->recode_bits);
    if ((n->bits != 0 && *coder == NULL) || (n->recode_bits != 0 && *recoder == NULL)) {
        nodedb_vamana__free_coder(index, *coder);
        nodedb_vamana__free_coder(index, *recoder);
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a coder");
    }
    if (*coder != NULL) (*coder)->step = n->step, (*coder)->slack = n->slack;
    if (*recoder != NULL) (*recoder)->step = n->recode_step;
    return NODEDB_OK;
}

/* Resumes making codes: remakes those that were done when the file was saved. */
static nodedb_status nodedb_vamana__resume_codes(nodedb_vamana *index, nodedb_vamana__coder *recoder, uint32_t at,
                                                 nodedb_error *err) {
    index->recodes = (uint8_t *)nodedb_vamana__alloc(index, index->arrays->capacity, recoder->stride,
                                                     NODEDB_CACHE_LINE_BYTES);
    if (index->recodes == NULL) return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for codes");
    nodedb_vamana__count_bytes(index, nodedb_vamana__coder_bytes(index), 0);
    index->recoder = recoder, index->recode_at = at;
    for (uint32_t slot = 0; slot < at; slot++)
        if (index->arrays->states[slot] != NODEDB_VAMANA__FREE)
            (void)nodedb_vamana__encode_slot(index, index->arrays, recoder, index->recodes, index->writer->turned,
                                             slot);
    return NODEDB_OK;
}

/* Checks the tree of an index whose rows are in memory. */
static nodedb_status nodedb_vamana__check_tree(const nodedb_vamana *index, nodedb_error *err) {
    const nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__tree_check tree;
    uint32_t slot;
    bool whole;
    if (!nodedb_vamana__tree_check_begin(index, &tree))
        return nodedb_vamana__no_memory(err, "check", index->file->path);
    for (slot = 0; slot < a->slots; slot++) tree.nodes[slot].parent = a->parents[slot];
    for (slot = 0; slot < a->slots; slot++)
        if (a->states[slot] != NODEDB_VAMANA__FREE)
            nodedb_vamana__tree_check_row(index, &tree, slot, nodedb_vamana__row(index, a, slot));
    whole = nodedb_vamana__is_tree(index, &tree, &slot);
    nodedb__release(&index->allocator, tree.nodes, tree.bytes);
    return whole ? NODEDB_OK
                 : nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_PARENTS, slot,
                                           "a vector cannot be reached, or a row names one twice", err);
}

/* Corrects what a pruning relies on: the level follows from the id, and at most half of a row is far. */
static void nodedb_vamana__check_head(const nodedb_vamana *index, uint32_t slot, uint32_t count) {
    const nodedb_vamana__arrays *a = index->arrays;
    nodedb_vamana__head *head = &a->heads[slot];
    head->level = a->states[slot] == NODEDB_VAMANA__FREE ? 0 : nodedb_vamana__level_of(index, a->ids[slot]);
    if ((uint32_t)head->far + head->pruned <= count && head->strict <= head->pruned &&
        head->far <= (head->level > 0 ? index->degree / 2 : 0))
        return;
    head->far = head->strict = head->pruned = 0;
}

/* Reads and checks everything behind the header, into arrays of the index that the writer can change. */
static nodedb_status nodedb_vamana__read_all_sections(nodedb_vamana *index, nodedb_vamana__reader *r,
                                                      nodedb_vamana__coder *coder, nodedb_vamana__coder *recoder,
                                                      uint8_t *record) {
    nodedb_vamana__arrays *a = index->arrays;
    nodedb_status status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_STATES, a->states, 1);
    if (status == NODEDB_OK) status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_IDS, a->ids, 8);
    if (status == NODEDB_OK && a->norms != NULL)
        status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_NORMS, a->norms, 4);
    if (status == NODEDB_OK && index->file->layout.item[NODEDB_VAMANA__IN_ROWS] > 0)
        status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_ROWS, a->rows, 4);
    if (status == NODEDB_OK) status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_HEADS, a->heads, 1);
    if (status == NODEDB_OK) status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_PARENTS, a->parents, 4);
    nodedb_vamana__read_from(r, NODEDB_VAMANA__IN_MEANS);
    if (status == NODEDB_OK && coder != NULL) status = nodedb_vamana__read_mean(r, coder);
    if (status == NODEDB_OK && recoder != NULL) status = nodedb_vamana__read_mean(r, recoder);
    if (status == NODEDB_OK && a->codes != NULL)
        status = nodedb_vamana__read_section(r, NODEDB_VAMANA__IN_CODES, a->codes, 1);
    if (status == NODEDB_OK) status = nodedb_vamana__read_records(r, record, NULL, NULL, true);
    if (status == NODEDB_OK) status = nodedb_vamana__check_slots(index, true, r->err);
    if (status == NODEDB_OK) status = nodedb_vamana__check_tree(index, r->err);
    for (uint32_t slot = 0; slot < a->slots && status == NODEDB_OK; slot++) {
        uint32_t count = nodedb_vamana__row_count(index, nodedb_vamana__row(index, a, slot));
        if (a->states[slot] == NODEDB_VAMANA__LIVE && !nodedb_vamana__table_add(a, slot))
            status = nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_IDS, slot, "two vectors have one id", r->err);
        nodedb_vamana__check_head(index, slot, count);
    }
    return status;
}

static nodedb_status nodedb_vamana__into_memory(nodedb_vamana *index, const nodedb_vamana__counts *n,
                                                uint64_t capacity, const uint8_t *header, uint8_t *buffer,
                                                nodedb_error *err) {
    nodedb_vamana__coder *coder = NULL, *recoder = NULL;
    size_t record_bytes = index->file->layout.record_bytes + (size_t)8;
    uint8_t *record = (uint8_t *)nodedb__alloc(&index->allocator, record_bytes, NODEDB_CACHE_LINE_BYTES);
    nodedb_vamana__reader r;
    nodedb_status status = record == NULL ? nodedb_vamana__no_memory(err, "read", index->file->path)
                                          : nodedb_vamana__make_coders(index, n, &coder, &recoder, err);
    uint32_t i;
    r = nodedb_vamana__reader_of(index, buffer, err);
    if (capacity < n->slots) capacity = n->slots;
    if (capacity < NODEDB_VAMANA__FIRST_CAPACITY) capacity = NODEDB_VAMANA__FIRST_CAPACITY;
    if (status == NODEDB_OK) {
        index->arrays = nodedb_vamana__alloc_arrays(index, capacity, n->resident ? coder : NULL, err);
        if (index->arrays == NULL) status = err->status;
        else index->arrays->slots = n->slots, index->arrays->entry = n->entry;
        if (index->arrays != NULL && n->resident)
            nodedb_vamana__count_bytes(index, nodedb_vamana__coder_bytes(index), 0);
    }
    for (i = 0; i < NODEDB_VAMANA__STARTS_MAX && status == NODEDB_OK; i++)
        index->arrays->starts[i] = nodedb_get_u32(header + NODEDB_VAMANA__AT_STARTS + 4 * i);
    if (index->arrays != NULL) index->arrays->zeros = nodedb_get_u32(header + NODEDB_VAMANA__AT_ZEROS) != 0;
    if (status == NODEDB_OK) status = nodedb_vamana__read_all_sections(index, &r, coder, recoder, record);
    if (status == NODEDB_OK) {
        index->writer = nodedb_vamana__new_writer(index, err);
        if (index->writer == NULL) status = NODEDB_ERR_NO_MEMORY;
    }
    if (status == NODEDB_OK && recoder != NULL)
        status = nodedb_vamana__resume_codes(index, recoder, n->recode_at, err);
    if (index->recoder == NULL) nodedb_vamana__free_coder(index, recoder);
    if (index->arrays == NULL || index->arrays->coder == NULL) nodedb_vamana__free_coder(index, coder);
    nodedb__release(&index->allocator, record, record_bytes);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Makes the file struct of an index whose header was read. Owns `fd` from now on, also on failure. */
static nodedb_status nodedb_vamana__make_file(nodedb_vamana *index, const char *path, int fd,
                                              const nodedb_vamana__file_layout *l, nodedb_error *err) {
    nodedb_vamana__file *f = (nodedb_vamana__file *)nodedb_vamana__alloc(index, 1, sizeof *f, NODEDB_CACHE_LINE_BYTES);
    if (f == NULL) {
        (void)index->io.close(index->io.ctx, fd);
        return nodedb_vamana__no_memory(err, "open", path);
    }
    index->file = f;
    f->fd = fd, f->layout = *l, f->path_bytes = strlen(path) + 1;
    f->path = (char *)nodedb_vamana__alloc(index, f->path_bytes, 1, 1);
    if (f->path != NULL) memcpy(f->path, path, f->path_bytes);
    if (l->blocks < SIZE_MAX / 8) {
        f->group_count = (size_t)((l->blocks + NODEDB_VAMANA__SUMS_PER_BLOCK - 1) / NODEDB_VAMANA__SUMS_PER_BLOCK);
        f->sums = (uint32_t *)nodedb_vamana__alloc_raw(
            index, f->group_count * NODEDB_VAMANA__SUMS_PER_BLOCK * sizeof *f->sums, sizeof(void *));
        f->groups = (uint8_t *)nodedb_vamana__alloc(index, f->group_count, 1, sizeof(void *));
    }
    if (f->path == NULL || f->sums == NULL || f->groups == NULL)
        return nodedb_vamana__no_memory(err, "open", path);
    return NODEDB_OK;
}

/* Opens a file and reads its header into `h`: *opened is an index without arrays. */
static nodedb_status nodedb_vamana__open_header(const char *path, const nodedb_vamana_open_config *config, uint8_t *h,
                                                nodedb_vamana__counts *n, nodedb_vamana **opened, int *which,
                                                nodedb_error *err) {
    nodedb_io io = nodedb__io_or_posix(&config->io);
    nodedb_vamana_config parameters;
    nodedb_vamana__file_layout layout;
    nodedb_vamana *index = NULL;
    uint64_t size = 0;
    int fd = nodedb_vamana__open_file(&io, path, config, h);
    nodedb_status status;
    *opened = NULL, *which = 0;
    memset(&parameters, 0, sizeof parameters);
    if (fd < 0)
        return nodedb_vamana__file_error(err, fd == -ENOENT ? NODEDB_ERR_NOT_FOUND : nodedb_io_status(-fd), -fd, 0,
                                         path, "cannot be opened");
    status = nodedb_vamana__read_header(&io, fd, path, h, &size, which, err);
    if (status == NODEDB_OK && nodedb_get_u32(h + NODEDB_VAMANA__AT_VERSION) != NODEDB_VAMANA_FORMAT_VERSION)
        status = nodedb_vamana__file_error(err, NODEDB_ERR_UNSUPPORTED, 0, NODEDB_VAMANA__AT_VERSION, path,
                                           "is of another version of the format");
    if (status == NODEDB_OK) status = nodedb_vamana__read_parameters(h, path, &parameters, err);
    if (status == NODEDB_OK) {
        parameters.kernel = config->kernel, parameters.no_huge_pages = config->no_huge_pages;
        parameters.allocator = config->allocator, parameters.logger = config->logger, parameters.io = config->io;
        index = nodedb_vamana__new(&parameters, err);
        status = index == NULL ? err->status : nodedb_vamana__read_counts(index, h, path, size, n, &layout, err);
    }
    if (status != NODEDB_OK) (void)io.close(io.ctx, fd);
    else status = nodedb_vamana__make_file(index, path, fd, &layout, err);
    *opened = index;
    if (status != NODEDB_OK) return status;
    nodedb_vamana__restore_state(index, h, n);
    if (*which == 1)
        nodedb_say(&config->logger, NODEDB_LOG_WARNING,
                    "%s: the header is damaged, its copy at the end is used; save the index again", path);
    return NODEDB_OK;
}

/* `unread`: reads nothing but the header. Such an index has no arrays and can only be verified and destroyed. */
static nodedb_vamana *nodedb_vamana__open_any(const char *path, const nodedb_vamana_open_config *config, bool unread,
                                              nodedb_error *err) {
    nodedb_vamana *index = NULL;
    nodedb_vamana__counts n;
    uint8_t *buffer, *header;
    nodedb_status status;
    size_t bytes = NODEDB_VAMANA__STREAM_BYTES + NODEDB_VAMANA__BLOCK;
    int which;
    memset(err, 0, sizeof *err);
    memset(&n, 0, sizeof n);
    buffer = (uint8_t *)nodedb__alloc(&config->allocator, bytes, NODEDB_VAMANA__BLOCK);
    if (buffer == NULL) {
        (void)nodedb_vamana__no_memory(err, "open", path);
        return NULL;
    }
    header = buffer + NODEDB_VAMANA__STREAM_BYTES;
    status = nodedb_vamana__open_header(path, config, header, &n, &index, &which, err);
    if (status == NODEDB_OK && !unread && config->mode == NODEDB_VAMANA_IN_MEMORY) {
        status = nodedb_vamana__into_memory(index, &n, config->capacity, header, buffer, err);
        nodedb_vamana__free_file(index);
    } else if (status == NODEDB_OK && !unread) {
        status = nodedb_vamana__onto_disk(index, config, &n, header, buffer, err);
    }
    nodedb__release(&config->allocator, buffer, bytes);
    if (status == NODEDB_OK) return index;
    nodedb_vamana_destroy(index);
    return NULL;
}

NODEDB_VAMANA_API nodedb_vamana *nodedb_vamana_open(const char *path, const nodedb_vamana_open_config *config,
                                                    nodedb_error *err) {
    nodedb_vamana_open_config defaults;
    nodedb_vamana *index;
    nodedb_error reason;
    memset(&defaults, 0, sizeof defaults);
    if (config == NULL) config = &defaults;
    if (path == NULL || path[0] == 0 ||
        (config->mode != NODEDB_VAMANA_IN_MEMORY && config->mode != NODEDB_VAMANA_ON_DISK) ||
        (int)config->fetch < 0 || (int)config->fetch > (int)NODEDB_VAMANA_FETCH_MAPPED) {
        (void)nodedb_fail(err, NODEDB_ERR_INVALID, 0, "path is NULL or empty, or mode or fetch is unknown");
        return NULL;
    }
    index = nodedb_vamana__open_any(path, config, false, &reason);
    if (index == NULL && err != NULL) *err = reason;
    return index;
}

/* ---- verifying --------------------------------------------------------------------------------------------------- */

/* What verify has found so far. Lives for one call. */
typedef struct nodedb_vamana__findings {
    nodedb_vamana_on_damage report;
    void *ctx;
    uint64_t count;
    nodedb_error first;
} nodedb_vamana__findings;

static void nodedb_vamana__found_damage(nodedb_vamana__findings *d, const nodedb_vamana *index, uint64_t offset,
                                        const char *what) {
    nodedb_error error;
    (void)nodedb_vamana__file_error(&error, NODEDB_ERR_CORRUPT, 0, offset, index->file->path, what);
    if (d->count++ == 0) d->first = error;
    if (d->report != NULL) d->report(d->ctx, offset, nodedb_vamana__section_name(&index->file->layout, offset));
}

/* Checks every block of the file except the headers. */
static nodedb_status nodedb_vamana__verify_blocks(nodedb_vamana *index, nodedb_vamana__findings *d, uint8_t *buffer,
                                                  nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    uint64_t offset = f->layout.at[0], end = f->layout.at[NODEDB_VAMANA__IN_SUMS], bytes;
    nodedb_status status = NODEDB_OK;
    int copies;
    for (size_t group = 0; group < f->group_count; group++) {
        status = nodedb_vamana__read_group(index, group, &copies, err);
        if (status != NODEDB_OK && status != NODEDB_ERR_CORRUPT) return status;
        f->groups[group] = copies != 0 ? NODEDB_VAMANA__LOADED : NODEDB_VAMANA__DAMAGED;
        for (int copy = 0; copy < 2; copy++)
            if ((copies >> copy & 1) == 0)
                nodedb_vamana__found_damage(
                    d, index, f->layout.at[NODEDB_VAMANA__IN_SUMS + copy] + group * NODEDB_VAMANA__BLOCK,
                    "a block of checksums is damaged");
    }
    for (; offset < end; offset += bytes) {
        bytes = end - offset < NODEDB_VAMANA__STREAM_BYTES ? end - offset : NODEDB_VAMANA__STREAM_BYTES;
        status = nodedb_vamana__read_at(index, buffer, (size_t)bytes, offset, err);
        if (status != NODEDB_OK) return status;
        for (uint64_t at = 0; at < bytes; at += NODEDB_VAMANA__BLOCK) {
            nodedb_error reason;
            status = nodedb_vamana__check_block(index, offset + at, buffer + at, &reason);
            if (status == NODEDB_ERR_CORRUPT)
                nodedb_vamana__found_damage(d, index, offset + at, "the block does not match its checksum");
            else if (status != NODEDB_OK) return nodedb_vamana__pass_on(&reason, err);
        }
    }
    return NODEDB_OK;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_verify(const char *path, const nodedb_vamana_open_config *config,
                                                     nodedb_vamana_on_damage report, void *ctx, nodedb_error *err) {
    nodedb_vamana_open_config reading;
    nodedb_vamana *index;
    nodedb_vamana__findings d;
    nodedb_error reason;
    nodedb_status status;
    uint8_t *buffer;
    memset(&reading, 0, sizeof reading);
    memset(&d, 0, sizeof d);
    d.report = report, d.ctx = ctx;
    if (config != NULL) reading = *config;
    reading.mode = NODEDB_VAMANA_ON_DISK, reading.fetch = NODEDB_VAMANA_FETCH_PREAD, reading.no_direct = true;
    memset(&reading.logger, 0, sizeof reading.logger); /* damage is reported and not logged */
    if (path == NULL || path[0] == 0) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "path is NULL or empty");
    buffer = (uint8_t *)nodedb__alloc(&reading.allocator, NODEDB_VAMANA__STREAM_BYTES, NODEDB_VAMANA__BLOCK);
    if (buffer == NULL) return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory to verify a file");
    index = nodedb_vamana__open_any(path, &reading, true, &reason);
    status = index == NULL ? reason.status : nodedb_vamana__verify_blocks(index, &d, buffer, &reason);
    if (index != NULL && status == NODEDB_OK) {
        uint8_t *h = buffer; /* both headers */
        int copy;
        for (copy = 0; copy < 2; copy++) {
            uint64_t at = copy == 0 ? 0 : index->file->layout.at[NODEDB_VAMANA__IN_HEADER_AGAIN];
            if (nodedb_vamana__read_at(index, h, NODEDB_VAMANA__BLOCK, at, &reason) != NODEDB_OK ||
                !nodedb_vamana__is_header(h))
                nodedb_vamana__found_damage(&d, index, at, "the header does not match its checksum");
        }
    }
    nodedb_vamana_destroy(index);
    if (status == NODEDB_OK && d.count > 0) {
        reason = d.first, status = NODEDB_ERR_CORRUPT;
    } else if (status == NODEDB_OK) {
        status = nodedb_vamana__verify_meaning(path, &reading, buffer, &reason);
    }
    nodedb__release(&reading.allocator, buffer, NODEDB_VAMANA__STREAM_BYTES);
    if (status != NODEDB_OK && err != NULL) *err = reason;
    return status;
}

/* ===================================================================================================================
 * DISK: searching an index in its file
 *
 * A walk on codes needs SECTIONS: states, ids, norms, heads, codes, and in the resident layout rows. Exact distances
 * need RECORDS: vectors, packed with their rows. Sections are kept in memory. They come in 64 KiB at a time when a part
 * is first touched, or by `load`: by pread, one after the other. Other threads that need the same part wait. Records
 * come through the searcher's fetcher. What is read, in order:
 *
 *   open       header, means of the codes, checksums of these means
 *   query      by id: table, states, ids, its record. With a filter: states and ids of 256 slots spread over all
 *   start      codes and norms of the entry and the starts; then heads, rows, codes, norms on the way down the levels
 *              (packed: rows only from the cache, so without it there is no way down)
 *   RESIDENT   walk      on rows, codes, norms ----------------|
 *              records             k + slack of them >---------|----- 8 more >--- 8 more >---
 *              rerank                                          |  4 | 4 | 4 | 4 ...   as they arrive
 *   PACKED     records   1 2 3 4 5 6 7 8 >---- 9 10 11 12 >---- 13 14 15 16 >---     at most 8 under way
 *              walk                        1 2 3 4          5 6 7 8          ...     codes, norms of their neighbours
 *   result     states, ids and norm of an entry of the beam, before it is measured exactly
 *   scan       states and ids of all slots, and the records of those that pass, 64 at a time
 *
 * Resident: the records are announced when the first k + slack places of the beam are expanded (read_early); with a
 * filter, and in search_many, after the walk. The rerank announces them again, which reads nothing that the pool has.
 * It adds 8 while the k best are uncertain, up to the end of the beam. Packed: the oldest four are expanded together,
 * cached nodes at once; each gets its exact distance, so there is no rerank. The pool has 2 batch_max buffers, and at
 * most QUEUE_DEPTH reads are under way; a fetcher by pread reads one record when it is fetched, and none before.
 *   In doubt, both layouts: if codes leave even the end of the beam uncertain, the walk is repeated on the vectors, and
 * reads the record of each node that it measures.
 *   search_many, resident: two groups of batch_max / (k + slack) queries take turns. One walks while the records of the
 * other are read. A query that is uncertain then is answered again at the end, alone. With a filter all go one by one.
 * Packed: 16 walkers share one fetcher.
 *   Each block is checked when it is read; the first of 1023 blocks to be checked reads both copies of their checksums.
 * One that does not match is read once more (not from a mapping), then quarantined and passed over. A read that fails
 * is repeated once; then the search fails, and the next one tries again.
 * ================================================================================================================ */

#if !defined(NODEDB_VAMANA_NO_DISK)
/* ---- sections in memory ------------------------------------------------------------------------------------------ */

/* The offset in the file of a slot's record. */
static uint64_t nodedb_vamana__record_at(const nodedb_vamana__file_layout *l, uint32_t slot) {
    uint64_t from = l->at[NODEDB_VAMANA__IN_RECORDS];
    if (l->records_per_block == 0) return from + (uint64_t)slot * l->blocks_per_record * NODEDB_VAMANA_BLOCK_BYTES;
    return from + (uint64_t)(slot / l->records_per_block) * NODEDB_VAMANA_BLOCK_BYTES +
           (uint64_t)(slot % l->records_per_block) * l->record_bytes;
}

static bool nodedb_vamana__in_quarantine(const nodedb_vamana__file *f, uint64_t offset) {
    uint64_t block = offset / NODEDB_VAMANA_BLOCK_BYTES;
    return (nodedb__load_relaxed(&f->damaged[block / 8]) >> block % 8 & 1) != 0;
}

static void nodedb_vamana__quarantine(nodedb_vamana *index, uint64_t offset) {
    nodedb_vamana__file *f = index->file;
    uint64_t block = offset / NODEDB_VAMANA_BLOCK_BYTES;
    uint8_t bit = (uint8_t)(1u << block % 8);
    if ((__atomic_fetch_or(&f->damaged[block / 8], bit, __ATOMIC_RELAXED) & bit) != 0) return;
    (void)nodedb__add_relaxed(&f->damaged_blocks, (uint64_t)1);
    nodedb_say(&index->logger, NODEDB_LOG_ERROR,
                "%s: the block at offset %llu (%s) is damaged; searches skip what is in it, and count it; "
                "save the index again from its source",
                f->path, (unsigned long long)(block * NODEDB_VAMANA_BLOCK_BYTES),
                nodedb_vamana__section_name(&f->layout, offset));
}

static uint64_t nodedb_vamana__damaged_blocks(const nodedb_vamana *index) {
    return nodedb__load_relaxed(&index->file->damaged_blocks);
}

/* True if the contents of a checked block, in memory order already, are valid. `from`: its offset in the section. */
static bool nodedb_vamana__makes_sense(const nodedb_vamana *index, int section, const uint8_t *block, size_t from) {
    const nodedb_vamana__file_layout *l = &index->file->layout;
    uint32_t slots = index->arrays->slots, word;
    uint64_t end = section == NODEDB_VAMANA__IN_TABLE ? l->places * 4 : l->item[section] * (uint64_t)slots;
    size_t bytes = end - from < NODEDB_VAMANA__BLOCK ? (size_t)(end - from) : NODEDB_VAMANA__BLOCK;
    float norm;
    switch (section) {
    case NODEDB_VAMANA__IN_STATES:
        for (size_t i = 0; i < bytes; i++)
            if (block[i] > NODEDB_VAMANA__REMOVED + 1) return false;
        break;
    case NODEDB_VAMANA__IN_HEADS:
        for (size_t i = 0; i < bytes; i += 4)
            if (block[i + 2] > index->degree / 2 || block[i + 3] > NODEDB_VAMANA__LEVELS_MAX) return false;
        break;
    case NODEDB_VAMANA__IN_ROWS:
    case NODEDB_VAMANA__IN_TABLE:
        for (size_t i = 0; i < bytes; i += 4) {
            memcpy(&word, block + i, 4);
            if (word >= slots && word != NODEDB_VAMANA__NONE) return false;
        }
        break;
    case NODEDB_VAMANA__IN_NORMS:
        for (size_t i = 0; i < bytes; i += 4) {
            memcpy(&norm, block + i, 4);
            if (!(norm >= 0) || !nodedb_vamana__is_finite(norm)) return false;
        }
        break;
    default: break;
    }
    return true;
}

/* Reads a chunk that the caller has claimed, and sets its state. On failure the chunk is ABSENT again. */
static nodedb_status nodedb_vamana__load_chunk(nodedb_vamana *index, int section, size_t chunk, nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__part *part = &f->parts[section];
    size_t from = chunk * NODEDB_VAMANA__CHUNK, bytes = part->bytes - from;
    uint64_t offset = f->layout.at[section] + from;
    uint8_t *to = part->memory + from, now = NODEDB_VAMANA__LOADED;
    nodedb_status status;
    if (bytes > NODEDB_VAMANA__CHUNK) bytes = NODEDB_VAMANA__CHUNK;
    status = nodedb_vamana__read_at(index, to, bytes, offset, err);
    for (size_t at = 0; at < bytes &&
         (status == NODEDB_OK || status == NODEDB_ERR_CORRUPT); at += NODEDB_VAMANA__BLOCK) {
        nodedb_status one = NODEDB_OK;
        size_t word = section == NODEDB_VAMANA__IN_IDS                                                   ? 8
                      : section == NODEDB_VAMANA__IN_CODES || section == NODEDB_VAMANA__IN_STATES ||
                              section == NODEDB_VAMANA__IN_HEADS
                          ? 1
                                                                                                   : 4;
        if (status == NODEDB_OK) one = nodedb_vamana__check_block(index, offset + at, to + at, err);
        if (status != NODEDB_OK || one == NODEDB_ERR_CORRUPT) { /* read this block again, alone */
            one = nodedb_vamana__read_at(index, to + at, NODEDB_VAMANA__BLOCK, offset + at, err);
            if (one == NODEDB_OK) one = nodedb_vamana__check_block(index, offset + at, to + at, err);
        }
        if (one != NODEDB_OK && one != NODEDB_ERR_CORRUPT) {
            status = one;
            break;
        }
        if (one == NODEDB_OK) nodedb_vamana__swap_words(to + at, NODEDB_VAMANA__BLOCK, word);
        if (one == NODEDB_OK && nodedb_vamana__makes_sense(index, section, to + at, from + at)) continue;
        nodedb_vamana__quarantine(index, offset + at);
        now = NODEDB_VAMANA__DAMAGED;
    }
    if (status != NODEDB_OK && status != NODEDB_ERR_CORRUPT) {
        nodedb__store_release(&part->chunks[chunk], (uint8_t)NODEDB_VAMANA__ABSENT);
        return status;
    }
    nodedb__store_release(&part->chunks[chunk], now);
    if (now == NODEDB_VAMANA__LOADED) (void)__atomic_fetch_sub(&f->chunks_left, 1, __ATOMIC_ACQ_REL);
    return NODEDB_OK;
}

static bool nodedb_vamana__load_and_check(const nodedb_vamana *reader, int section, uint64_t from, size_t bytes,
                                          nodedb_vamana__read_errors *errors) {
    nodedb_vamana *index = (nodedb_vamana *)(uintptr_t)reader; /* loading changes the file's state only */
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__part *part = &f->parts[section];
    uint64_t chunk = from / NODEDB_VAMANA__CHUNK, last = (from + bytes - 1) / NODEDB_VAMANA__CHUNK, at;
    bool damaged = false;
    if (errors->failed != NODEDB_OK) return false;
    for (; chunk <= last; chunk++) {
        uint8_t now;
        if (nodedb_vamana__claim(&part->chunks[chunk], &now)) {
            errors->failed = nodedb_vamana__load_chunk(index, section, (size_t)chunk, &errors->error);
            if (errors->failed != NODEDB_OK) return false;
            now = nodedb__load_acquire(&part->chunks[chunk]);
        }
        damaged = damaged || now == NODEDB_VAMANA__DAMAGED;
    }
    for (at = from / NODEDB_VAMANA__BLOCK; at <= (from + bytes - 1) / NODEDB_VAMANA__BLOCK && damaged; at++)
        if (nodedb_vamana__in_quarantine(f, f->layout.at[section] + at * NODEDB_VAMANA__BLOCK)) {
            errors->damaged++;
            return false;
        }
    return true;
}

/* True if these bytes of a section are in memory and intact; reads them first if needed. False: they are damaged or
 * unreadable, which *errors then tells. Only for an index on disk. */
NODEDB_VAMANA__INLINE bool nodedb_vamana__have(const nodedb_vamana *index, int section, uint64_t from, size_t bytes,
                                               nodedb_vamana__read_errors *errors) {
    const uint8_t *chunks = index->file->parts[section].chunks;
    assert(bytes > 0 && from + bytes <= index->file->parts[section].bytes);
    if (nodedb__load_acquire(&chunks[from / NODEDB_VAMANA__CHUNK]) == NODEDB_VAMANA__LOADED &&
        nodedb__load_acquire(&chunks[(from + bytes - 1) / NODEDB_VAMANA__CHUNK]) == NODEDB_VAMANA__LOADED)
        return true;
    return nodedb_vamana__load_and_check(index, section, from, bytes, errors);
}

/* The same for the bytes of one slot. */
NODEDB_VAMANA__INLINE bool nodedb_vamana__have_slot(const nodedb_vamana *index, int section, uint32_t slot,
                                                    nodedb_vamana__read_errors *errors) {
    size_t item = index->file->layout.item[section];
    return nodedb_vamana__have(index, section, (uint64_t)slot * item, item, errors);
}

static bool nodedb_vamana__have_row(const nodedb_vamana *index, uint32_t slot, nodedb_vamana__read_errors *errors) {
    return nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_ROWS, slot, errors);
}

static bool nodedb_vamana__have_norm(const nodedb_vamana *index, uint32_t slot, nodedb_vamana__read_errors *errors) {
    return nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_NORMS, slot, errors);
}

/* True if parts of the sections are not in memory yet, so that a walk must check for what it needs. */
static bool nodedb_vamana__is_partial(const nodedb_vamana *index) {
    return index->file != NULL && nodedb__load_acquire(&index->file->chunks_left) > 0;
}

/* True if the state and the id of a slot are in memory and intact. */
static bool nodedb_vamana__have_state(const nodedb_vamana *index, uint32_t slot, nodedb_vamana__read_errors *errors) {
    return index->file == NULL || (nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_STATES, slot, errors) &&
                                   nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_IDS, slot, errors));
}

/* The live slot of an id in an index on disk, or NONE: there is none, or errors->failed. Where the table of ids is
 * damaged, scans all slots. */
static uint32_t nodedb_vamana__find_on_disk(const nodedb_vamana *index, uint64_t id,
                                            nodedb_vamana__read_errors *errors) {
    const nodedb_vamana__arrays *a = index->arrays;
    uint64_t mask = index->file->layout.places - 1, at = nodedb_mix64(id) & mask;
    uint32_t slot;
    for (uint64_t n = 0; n <= mask; n++, at = (at + 1) & mask) {
        if (!nodedb_vamana__have(index, NODEDB_VAMANA__IN_TABLE, at * 4, 4, errors)) break;
        slot = a->table[at];
        if (slot == NODEDB_VAMANA__NONE) return NODEDB_VAMANA__NONE;
        if (nodedb_vamana__have_state(index, slot, errors) && a->states[slot] == NODEDB_VAMANA__LIVE &&
            a->ids[slot] == id)
            return slot;
        if (errors->failed != NODEDB_OK) return NODEDB_VAMANA__NONE;
    }
    for (slot = 0; slot < a->slots && errors->failed == NODEDB_OK; slot++)
        if (nodedb_vamana__have_state(index, slot, errors) && a->states[slot] == NODEDB_VAMANA__LIVE &&
            a->ids[slot] == id)
            return slot;
    return NODEDB_VAMANA__NONE;
}

static uint32_t nodedb_vamana__cache_place(const nodedb_vamana__cache *c, uint32_t slot) {
    uint32_t mask = c->places_size - 1, at = (uint32_t)nodedb_mix64(slot) & mask;
    while (c->places[at] != NODEDB_VAMANA__NONE && c->slots[c->places[at]] != slot) at = (at + 1) & mask;
    return at;
}

/* Keeps those of `count` slots in s->slots whose codes and norms are in memory and intact; returns how many. */
static uint32_t nodedb_vamana__have_codes(nodedb_vamana_searcher *s, uint32_t count) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++)
        if (nodedb_vamana__have_slot(s->index, NODEDB_VAMANA__IN_CODES, s->slots[i], &s->read_errors) &&
            (s->arrays->norms == NULL ||
             nodedb_vamana__have_slot(s->index, NODEDB_VAMANA__IN_NORMS, s->slots[i], &s->read_errors)))
            s->slots[n++] = s->slots[i];
    return n;
}

static bool nodedb_vamana__is_packed(const nodedb_vamana *index) {
    return index->file != NULL && index->file->layout.row_at > 0;
}

/* The cached record of a node, or NULL. */
static const uint8_t *nodedb_vamana__cached(const nodedb_vamana *index, uint32_t slot) {
    const nodedb_vamana__cache *c = &index->file->cache;
    const uint8_t *record;
    uint32_t at, first;
    if (!nodedb__load_acquire(&c->ready)) return NULL;
    at = c->places[nodedb_vamana__cache_place(c, slot)];
    if (at == NODEDB_VAMANA__NONE) return NULL;
    record = c->records + at * c->stride;
    memcpy(&first, record + index->file->layout.row_at, sizeof first);
    return first == NODEDB_VAMANA__NO_RECORD ? NULL : record;
}

/* Keeps those of `count` slots in s->slots, read from a file, that are in range and have codes; returns how many.
 * Blocks with valid checksums may still hold invalid slots. */
static uint32_t nodedb_vamana__keep_valid(nodedb_vamana_searcher *s, uint32_t count) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (s->slots[i] < s->arrays->slots) s->slots[n++] = s->slots[i];
        else s->read_errors.damaged++;
    }
    return nodedb_vamana__is_partial(s->index) ? nodedb_vamana__have_codes(s, n) : n;
}

/* The row of a node. NULL: it is damaged, or on disk and not cached. */
static const uint32_t *nodedb_vamana__row_here(nodedb_vamana_searcher *s, const nodedb_vamana__arrays *a,
                                               uint32_t slot) {
    const nodedb_vamana *index = s->index;
    if (index->file == NULL) return nodedb_vamana__row(index, a, slot);
    if (!nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_HEADS, slot, &s->read_errors)) return NULL;
    if (nodedb_vamana__is_packed(index)) {
        const uint8_t *record = nodedb_vamana__cached(index, slot);
        return record == NULL ? NULL : (const uint32_t *)(const void *)(record + index->file->layout.row_at);
    }
    if (!nodedb_vamana__have_slot(index, NODEDB_VAMANA__IN_ROWS, slot, &s->read_errors)) return NULL;
    return nodedb_vamana__row(index, a, slot);
}

/* ---- reranking from disk ----------------------------------------------------------------------------------------- */

/* The distance from the prepared query to an exact vector that a fetcher read. COSINE over bytes: the length of the
 * query is 1 / target->constant, that of the vector 1 / norm. */
static float nodedb_vamana__exact(const nodedb_vamana *index, const nodedb_vamana__target *target, const void *vector,
                                  float norm) {
    const nodedb_vamana_kernels *k = &index->kernels->one;
    const uint8_t *q = (const uint8_t *)target->vector, *x = (const uint8_t *)vector;
    const float *qf = (const float *)target->vector, *xf = (const float *)vector;
    const int8_t *qi = (const int8_t *)target->vector, *xi = (const int8_t *)vector;
    bool l2 = index->metric == NODEDB_VAMANA_L2;
    float d;
    switch (index->type) {
    case NODEDB_VAMANA_U8: d = l2 ? k->l2_u8(q, x, index->dim) : k->dot_u8(q, x, index->dim); break;
    case NODEDB_VAMANA_I8: d = l2 ? k->l2_i8(qi, xi, index->dim) : k->dot_i8(qi, xi, index->dim); break;
    default: d = l2 ? k->l2_f32(qf, xf, index->dim) : k->dot_f32(qf, xf, index->dim); break;
    }
    if (l2) return d;
    if (index->metric == NODEDB_VAMANA_IP) return -d;
    return nodedb_vamana__from_cosine(index->type == NODEDB_VAMANA_F32 ? d : d * target->constant * norm);
}

/* The head of the beam is expanded and will hardly change: starts to read its vectors during the rest of the walk. The
 * rerank announces them again, which reads nothing that the pool has, and reports what failed. */
static void nodedb_vamana__read_early(nodedb_vamana_searcher *s) {
    uint32_t slots[32], n = 0;
    for (uint32_t i = 0; i < s->early; i++) {
        slots[n++] = s->beam[i].slot;
        if (n < 32 && i + 1 < s->early) continue;
        (void)s->fetcher.prefetch_batch(s->fetcher.ctx, slots, n, NULL);
        n = 0;
    }
    s->early = 0;
}

/* Measures the `n` results at results + from, whose vectors were announced, and offers them to the heap of the best
 * `most` at results[0 .. *heap). Damaged ones are skipped. */
static nodedb_status nodedb_vamana__measure_fetched(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                                    nodedb_vamana__near *results, size_t most, size_t from, size_t n,
                                                    size_t *heap, nodedb_vamana__code_error *code_error,
                                                    nodedb_error *err) {
    const nodedb_vamana__arrays *a = s->arrays;
    for (size_t i = from; i < from + n; i++) {
        nodedb_error reason;
        uint32_t slot = results[i].slot;
        const void *vector = s->fetcher.fetch(s->fetcher.ctx, slot, &reason);
        float distance;
        if (vector == NULL && reason.status != NODEDB_ERR_CORRUPT) return nodedb_vamana__pass_on(&reason, err);
        if (a->norms != NULL && !nodedb_vamana__have_norm(s->index, slot, &s->read_errors)) {
            if (s->read_errors.failed == NODEDB_OK) continue;
            return nodedb_vamana__read_failure(s, err);
        }
        distance = 0;
        if (vector != NULL)
            distance = nodedb_vamana__exact(s->index, exact, vector, nodedb_vamana__norm(a, slot));
        if (vector == NULL || !nodedb_vamana__is_finite(distance)) {
            s->read_errors.damaged++;
            continue;
        }
        if (code_error != NULL) nodedb_vamana__note_code_error(code_error, distance, results[i].distance);
        *heap = nodedb_vamana__heap_offer(a->ids, results, *heap, most, distance, slot);
    }
    return NODEDB_OK;
}

/* Measures the first few of the results s->spare[from .. n); *few: how many. First it announces all up to `n`, as many
 * as the fetcher keeps, so that the device works meanwhile. *told: the first result that is not announced. */
static nodedb_status nodedb_vamana__measure_few(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                                size_t most, size_t from, size_t n, size_t *told, size_t *few,
                                                size_t *heap, nodedb_vamana__code_error *code_error,
                                                nodedb_error *err) {
    size_t batch = 0;
    while (*told + batch < n && *told + batch - from < nodedb_vamana__min(s->fetcher.batch_max, s->candidates_max))
        batch++;
    for (size_t i = 0; i < batch; i++) s->slots[i] = s->spare[*told + i].slot;
    if (batch > 0) {
        nodedb_status status = s->fetcher.prefetch_batch(s->fetcher.ctx, s->slots, batch, err);
        if (status != NODEDB_OK) return status;
    }
    *told += batch, *few = nodedb_vamana__min(*told - from, NODEDB_VAMANA__RERANK_FEW);
    return nodedb_vamana__measure_fetched(s, exact, s->spare, most, from, *few, heap, code_error, err);
}

/* ---- walking on vectors that are read ---------------------------------------------------------------------------- */

/* For a query whose neighbours the codes cannot tell apart. Every vector that the walk measures is read, those of one
 * row together. */

/* The vector of a slot that was announced, followed by its row if the file is packed. NULL: it is damaged, or
 * s->read_errors has failed. */
static const uint8_t *nodedb_vamana__fetch_record(nodedb_vamana_searcher *s, uint32_t slot) {
    nodedb_error reason;
    const uint8_t *record = (const uint8_t *)s->fetcher.fetch(s->fetcher.ctx, slot, &reason);
    if (record != NULL) return record;
    if (reason.status == NODEDB_ERR_CORRUPT) s->read_errors.damaged++;
    else s->read_errors.failed = reason.status, s->read_errors.error = reason;
    return NULL;
}

/* Announces slots to the fetcher. False: s->read_errors has failed. */
static bool nodedb_vamana__announce(nodedb_vamana_searcher *s, const uint32_t *slots, uint32_t n) {
    nodedb_error reason;
    nodedb_status status = NODEDB_OK;
    if (s->read_errors.failed != NODEDB_OK) return false;
    if (n > 0) status = s->fetcher.prefetch_batch(s->fetcher.ctx, slots, n, &reason);
    if (status != NODEDB_OK) s->read_errors.failed = status, s->read_errors.error = reason;
    return status == NODEDB_OK;
}

/* Reads and measures `count` slots in s->slots, and drops those whose vectors are damaged. Returns how many are left;
 * 0 if s->read_errors has failed. */
static uint32_t nodedb_vamana__measure_read(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                            uint32_t count) {
    const nodedb_vamana__arrays *a = s->arrays;
    uint32_t left = 0, batch;
    for (uint32_t from = 0; from < count; from += batch) {
        batch = (uint32_t)nodedb_vamana__min(count - from, s->fetcher.batch_max);
        if (!nodedb_vamana__announce(s, s->slots + from, batch)) return 0;
        for (uint32_t i = from; i < from + batch; i++) {
            uint32_t slot = s->slots[i];
            const uint8_t *vector = nodedb_vamana__fetch_record(s, slot);
            float distance;
            if (vector == NULL || (a->norms != NULL && !nodedb_vamana__have_norm(s->index, slot, &s->read_errors))) {
                if (s->read_errors.failed != NODEDB_OK) return 0;
                continue;
            }
            distance = nodedb_vamana__exact(s->index, target, vector, nodedb_vamana__norm(a, slot));
            if (!nodedb_vamana__is_finite(distance)) s->read_errors.damaged++;
            else s->distances[left] = distance, s->slots[left++] = slot;
        }
    }
    return left;
}

/* The row of a node, read if the file is packed and the node is not cached. NULL: it is damaged, or s->read_errors has
 * failed. */
static const uint32_t *nodedb_vamana__read_row(nodedb_vamana_searcher *s, uint32_t slot) {
    const uint8_t *record;
    if (!nodedb_vamana__is_packed(s->index)) return nodedb_vamana__row_here(s, s->arrays, slot);
    record = nodedb_vamana__cached(s->index, slot);
    if (record == NULL && nodedb_vamana__announce(s, &slot, 1)) record = nodedb_vamana__fetch_record(s, slot);
    return record == NULL ? NULL : (const uint32_t *)(const void *)(record + s->index->file->layout.row_at);
}

/* As walk_over, by exact distances. Ends early if s->read_errors has failed. */
static void nodedb_vamana__walk_read(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width) {
    uint32_t next = 0;
    nodedb_vamana__begin_walk(s, target, width);
    while (next < s->beam_count && s->read_errors.failed == NODEDB_OK) {
        const uint32_t *row = nodedb_vamana__read_row(s, s->beam[next].slot);
        uint32_t count = 0;
        s->beam[next].mark = 1;
        s->hops++;
        if (row != NULL) count = nodedb_vamana__gather(s, row, s->index->degree, s->seen, s->seen_size - 1);
        count = nodedb_vamana__measure_slots(s, target, nodedb_vamana__keep_valid(s, count));
        do next++;
        while (next < s->beam_count && s->beam[next].mark);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = nodedb_vamana__beam_add(s, width, s->distances[i], s->slots[i]);
            if (at < next) next = at;
        }
    }
}

/* False: the codes were made for the file alone, so they may blur what walks in memory tell apart. */
static bool nodedb_vamana__codes_are_judged(const nodedb_vamana *index) {
    return index->file == NULL || index->file->codes_are_judged;
}

/* ---- the packed layout ------------------------------------------------------------------------------------------- */

/* A walk on codes as always, but the rows are on the disk, each with its vector. So it reads a few nodes together, the
 * nearest that it has not expanded, and gets their exact distances on the way (DiskANN section 3.2). */

#define NODEDB_VAMANA__READ_BATCH 4u   /* nodes of one query that are announced and expanded together */
#define NODEDB_VAMANA__WINDOW 8u /* reads of one query under way: one batch is read while another is expanded */

/* A query that walks over the packed layout. Lives in one call, or in a searcher for the walkers of search_many. `busy`
 * ones have a query. */
typedef struct nodedb_vamana__walker {
    nodedb_vamana_searcher *s;       /* whose lists it uses; the results so far are a heap in `spare` */
    nodedb_vamana__plan plan;
    nodedb_vamana__target code, exact;
    float norm;
    uint32_t next;                   /* first place of the beam that may not have been expanded */
    uint32_t count, batch[NODEDB_VAMANA__WINDOW]; /* nodes that were announced, the oldest first ... */
    float by_code[NODEDB_VAMANA__WINDOW];         /* ... and their distances */
    nodedb_vamana__code_error error;              /* of those that were measured */
    size_t found;
    uint64_t query_index;               /* in search_many */
    bool busy;
} nodedb_vamana__walker;

static void nodedb_vamana__walker_begin(nodedb_vamana__walker *walker) {
    nodedb_vamana_searcher *s = walker->s;
    walker->code = nodedb_vamana__code_target(s, s->query, walker->norm);
    walker->exact = nodedb_vamana__query_target(s, walker->norm);
    walker->next = 0, walker->count = 0, walker->found = 0;
    memset(&walker->error, 0, sizeof walker->error);
    walker->error.code = walker->code;
    nodedb_vamana__begin_walk(s, &walker->code, walker->plan.beam);
}

/* Expands a node: measures it exactly, and its neighbours by code. */
static void nodedb_vamana__walker_expand(nodedb_vamana__walker *walker, const nodedb_vamana_query *query, uint32_t slot,
                                         float by_code, const uint8_t *record) {
    nodedb_vamana_searcher *s = walker->s;
    const nodedb_vamana *index = s->index;
    const nodedb_vamana__arrays *a = s->arrays;
    const uint32_t *row = (const uint32_t *)(const void *)(record + index->file->layout.row_at);
    uint32_t n;
    s->hops++;
    if (nodedb_vamana__passes(s, query, slot) &&
        (a->norms == NULL || nodedb_vamana__have_norm(index, slot, &s->read_errors))) {
        float distance = nodedb_vamana__exact(index, &walker->exact, record, nodedb_vamana__norm(a, slot));
        s->computed++, s->exact++;
        if (!nodedb_vamana__is_finite(distance)) {
            s->read_errors.damaged++;
        } else {
            nodedb_vamana__note_code_error(&walker->error, distance, by_code);
            walker->found = nodedb_vamana__heap_offer(a->ids, s->spare, walker->found, walker->plan.k, distance, slot);
        }
    }
    n = nodedb_vamana__gather(s, row, index->degree, s->seen, s->seen_size - 1);
    n = nodedb_vamana__keep_valid(s, n);
    nodedb_vamana__measure_many(index, &walker->code, s->slots, n, s->distances);
    s->computed += n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = nodedb_vamana__beam_add(s, walker->plan.beam, s->distances[i], s->slots[i]);
        if (at < walker->next) walker->next = at;
    }
}

/* Expands the next nodes that are cached and announces those that must be read, until the window is full. Afterwards
 * walker->count 0: the walk has ended. */
static nodedb_status nodedb_vamana__walker_announce(nodedb_vamana__walker *walker, const nodedb_vamana_query *query,
                                                    nodedb_error *err) {
    nodedb_vamana_searcher *s = walker->s;
    uint32_t had = walker->count;
    while (walker->next < s->beam_count && walker->count < NODEDB_VAMANA__WINDOW) {
        nodedb_vamana__near *near = &s->beam[walker->next++];
        const uint8_t *record;
        if (near->mark) continue;
        near->mark = 1;
        record = nodedb_vamana__cached(s->index, near->slot);
        if (record != NULL) {
            nodedb_vamana__walker_expand(walker, query, near->slot, near->distance, record);
            continue;
        }
        walker->by_code[walker->count] = near->distance;
        walker->batch[walker->count++] = near->slot;
    }
    if (s->read_errors.failed != NODEDB_OK) return nodedb_vamana__read_failure(s, err);
    if (walker->count == 0)
        walker->plan.in_doubt = walker->found >= walker->plan.k &&
                                nodedb_vamana__ends_in_doubt(s, &walker->plan, &walker->error, s->spare[0].distance);
    if (walker->count == had) return NODEDB_OK;
    return s->fetcher.prefetch_batch(s->fetcher.ctx, &walker->batch[had], walker->count - had, err);
}

/* Expands a batch: the oldest of the nodes that were announced. */
static nodedb_status nodedb_vamana__walker_take(nodedb_vamana__walker *walker, const nodedb_vamana_query *query,
                                                nodedb_error *err) {
    nodedb_vamana_searcher *s = walker->s;
    uint32_t n = walker->count < NODEDB_VAMANA__READ_BATCH ? walker->count : NODEDB_VAMANA__READ_BATCH;
    for (uint32_t i = 0; i < n && s->read_errors.failed == NODEDB_OK; i++) {
        uint32_t slot = walker->batch[i];
        nodedb_error reason;
        const uint8_t *record = (const uint8_t *)s->fetcher.fetch(s->fetcher.ctx, slot, &reason);
        if (record == NULL && reason.status == NODEDB_ERR_STATE) { /* other walkers have announced too much since */
            reason.status = s->fetcher.prefetch_batch(s->fetcher.ctx, &slot, 1, &reason);
            if (reason.status == NODEDB_OK)
                record = (const uint8_t *)s->fetcher.fetch(s->fetcher.ctx, slot, &reason);
        }
        if (record != NULL) nodedb_vamana__walker_expand(walker, query, slot, walker->by_code[i], record);
        else if (reason.status == NODEDB_ERR_CORRUPT) s->read_errors.damaged++;
        else s->read_errors.failed = reason.status, s->read_errors.error = reason;
    }
    walker->count -= n;
    memmove(walker->batch, walker->batch + n, walker->count * sizeof *walker->batch);
    memmove(walker->by_code, walker->by_code + n, walker->count * sizeof *walker->by_code);
    return nodedb_vamana__read_failure(s, err);
}

/* One walk over the packed layout. Results by exact distance, a heap in s->spare. */
static nodedb_status nodedb_vamana__walk_packed(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                nodedb_vamana__plan *plan, float norm, size_t *found,
                                                nodedb_error *err) {
    nodedb_vamana__walker walker;
    nodedb_status status;
    memset(&walker, 0, sizeof walker);
    walker.s = s, walker.plan = *plan, walker.norm = norm;
    nodedb_vamana__walker_begin(&walker);
    status = nodedb_vamana__walker_announce(&walker, query, err);
    while (status == NODEDB_OK && walker.count > 0) {
        status = nodedb_vamana__walker_take(&walker, query, err);
        if (status == NODEDB_OK) status = nodedb_vamana__walker_announce(&walker, query, err);
    }
    *found = walker.found, plan->in_doubt = walker.plan.in_doubt;
    return status;
}

/* ---- many queries ------------------------------------------------------------------------------------------------ */

#define NODEDB_VAMANA__RERUN UINT32_MAX /* as a number of results: answer this query again, after the others */

/* A query that has walked: its results by code, whose vectors are being read for the rerank. In a searcher's memory,
 * for one call. */
typedef struct nodedb_vamana__pending_rerank {
    uint64_t query_index;
    uint8_t *query;               /* prepared: index->stride bytes */
    nodedb_vamana__near *results; /* n, with room for query_batch.keep */
    size_t n;
    float norm;
    nodedb_vamana__target code;
    nodedb_vamana__near next;     /* the next result by code, which is not read, or the end of a full beam */
    double deviations;            /* of the codes' error, by which `next` is judged. 0: there is nothing to judge */
} nodedb_vamana__pending_rerank;

/* Makes room for two groups of queries, each with no more results than the fetcher takes at once. False: one at a
 * time. */
static bool nodedb_vamana__make_pending(nodedb_vamana__query_batch *q, uint64_t n) {
    nodedb_vamana_searcher *s = q->s;
    nodedb_vamana__plan plan;
    uint32_t most = s->fetcher.batch_max < s->candidates_max ? s->fetcher.batch_max : s->candidates_max;
    size_t query_bytes = (s->index->stride + 15) / 16 * 16, results_bytes, bytes;
    uint8_t *at;
    if (n < 2 || nodedb_vamana__is_filtered(q->common) || q->common->k > NODEDB_VAMANA_MAX_BEAM ||
        q->common->beam > NODEDB_VAMANA_MAX_BEAM || nodedb_vamana__plan_query(s, q->common, &plan, NULL) != NODEDB_OK ||
        plan.way == NODEDB_VAMANA__BY_SCAN || plan.keep > most)
        return false;
    q->keep = plan.keep, q->group_max = most / plan.keep;
    results_bytes = (q->keep * sizeof(nodedb_vamana__near) + 15) / 16 * 16;
    bytes = 2 * q->group_max * (sizeof(nodedb_vamana__pending_rerank) + query_bytes + results_bytes);
    if (s->pending_bytes < bytes) {
        nodedb__release(&s->allocator, s->pending, s->pending_bytes);
        s->pending_bytes = 0;
        s->pending = (nodedb_vamana__pending_rerank *)nodedb__alloc(&s->allocator, bytes, NODEDB_CACHE_LINE_BYTES);
        if (s->pending == NULL) return false;
        s->pending_bytes = bytes;
    }
    at = (uint8_t *)(s->pending + 2 * q->group_max);
    for (uint32_t i = 0; i < 2 * q->group_max; i++, at += query_bytes + results_bytes)
        s->pending[i].query = at, s->pending[i].results = (nodedb_vamana__near *)(void *)(at + query_bytes);
    q->group[0] = s->pending, q->group[1] = s->pending + q->group_max;
    return true;
}

/* Announces the vectors of a group that has walked: their reads start. */
static nodedb_status nodedb_vamana__begin_reads(nodedb_vamana__query_batch *q, uint32_t group, nodedb_error *err) {
    size_t n = 0;
    nodedb_status status;
    for (uint32_t i = 0; i < q->count[group]; i++)
        for (size_t j = 0; j < q->group[group][i].n; j++) q->s->slots[n++] = q->group[group][i].results[j].slot;
    if (n == 0) return NODEDB_OK;
    status = q->s->fetcher.prefetch_batch(q->s->fetcher.ctx, q->s->slots, n, err);
    if (status != NODEDB_OK) q->failed = q->group[group][0].query_index;
    return status;
}

/* Reranks a group query by query, as its reads complete, and copies the results. */
static nodedb_status nodedb_vamana__end_reads(nodedb_vamana__query_batch *q, uint32_t group, nodedb_error *err) {
    nodedb_vamana_searcher *s = q->s;
    uint32_t count = q->count[group];
    q->count[group] = 0;
    for (uint32_t i = 0; i < count; i++) {
        nodedb_vamana__pending_rerank *p = &q->group[group][i];
        nodedb_vamana__target exact;
        nodedb_vamana__code_error code_error;
        size_t heap = 0;
        nodedb_status status;
        memset(&code_error, 0, sizeof code_error);
        code_error.code = p->code;
        s->read_errors.failed = NODEDB_OK, s->read_errors.damaged = 0;
        memcpy(s->query, p->query, s->index->stride);
        exact = nodedb_vamana__query_target(s, p->norm);
        status = nodedb_vamana__measure_fetched(s, &exact, p->results, q->k, 0, p->n, &heap, &code_error, err);
        if (status != NODEDB_OK) {
            q->failed = p->query_index;
            return status;
        }
        if (p->deviations > 0 && heap == q->k &&
            nodedb_vamana__may_be_nearer(s->index, &code_error, p->deviations, p->results[0].distance, &p->next)) {
            q->found[p->query_index] = NODEDB_VAMANA__RERUN;
        } else {
            nodedb_vamana__sort_heap(s->arrays->ids, p->results, heap);
            nodedb_vamana__copy_results(s, p->results, heap, q->k, q->results + (size_t)p->query_index * q->k,
                                        &q->found[p->query_index]);
        }
        q->sum.distances += p->n, q->sum.exact += p->n, q->sum.damaged += s->read_errors.damaged;
    }
    return NODEDB_OK;
}

/* Starts the reads of the group that has walked, then reranks the other group, whose place walks next. The fetcher
 * keeps both batches, so the device always has reads to do. */
static nodedb_status nodedb_vamana__next_group(nodedb_vamana__query_batch *q, uint32_t *walking, nodedb_error *err) {
    nodedb_error reason;
    nodedb_status begun = nodedb_vamana__begin_reads(q, *walking, &reason), status;
    uint64_t failed = q->failed;
    status = nodedb_vamana__end_reads(q, *walking ^ 1, err);
    if (status == NODEDB_OK && begun != NODEDB_OK) {
        q->failed = failed, status = begun;
        if (err != NULL) *err = reason;
    }
    *walking ^= 1;
    return status;
}

/* Walks query i and adds it to the group that walks. A query that needs a scan is answered at once, after those before
 * it, as it reads everything itself. */
static nodedb_status nodedb_vamana__walk_pending(nodedb_vamana__query_batch *q, uint64_t i, uint32_t *walking,
                                                 nodedb_error *err) {
    nodedb_vamana_searcher *s = q->s;
    nodedb_vamana__pending_rerank *p = &q->group[*walking][q->count[*walking]];
    nodedb_vamana__plan plan;
    size_t found = 0;
    float norm;
    nodedb_status status = nodedb_vamana__begin_query(s, q->common, q->vectors + (size_t)i * s->index->vector_bytes,
                                                      false, &plan, &norm, err);
    if (status == NODEDB_OK)
        status = nodedb_vamana__walk_to_results(s, q->common, &plan, norm, &found, &p->code, err);
    if (status != NODEDB_OK) {
        q->failed = i;
        return status;
    }
    if (plan.way == NODEDB_VAMANA__BY_SCAN) { /* rare: the query walks once more */
        status = nodedb_vamana__next_group(q, walking, err);
        if (status == NODEDB_OK) status = nodedb_vamana__next_group(q, walking, err);
        return status == NODEDB_OK ? nodedb_vamana__answer_one(q, i, err) : status;
    }
    q->sum.hops += s->hops, q->sum.distances += s->computed, q->sum.damaged += s->read_errors.damaged;
    memcpy(p->query, s->query, s->index->stride);
    memcpy(p->results, s->spare, found * sizeof *p->results);
    p->query_index = i, p->n = found, p->norm = norm;
    p->deviations = 0;
    if (plan.more && nodedb_vamana__collect_codes(s, q->common, found, found + 1) > found)
        p->deviations = NODEDB_VAMANA__ERROR_DEVIATIONS, p->next = s->spare[found];
    else if (nodedb_vamana__may_end_in_doubt(s, &plan))
        p->deviations = NODEDB_VAMANA__ERROR_DEVIATIONS_AGAIN, p->next = s->beam[s->beam_count - 1];
    q->count[*walking]++;
    return NODEDB_OK;
}

/* Answers again the queries that are still uncertain. `status`: that of query q->failed, the first that failed so far.
 * One before it that fails here takes its place. Returns the status of the first that failed, and leaves nothing of
 * the queries behind it. */
static nodedb_status nodedb_vamana__rerun(nodedb_vamana__query_batch *q, uint64_t n, nodedb_status status,
                                          nodedb_error *err) {
    uint64_t end = status == NODEDB_OK ? n : q->failed;
    for (uint64_t i = 0; i < end; i++) {
        nodedb_error reason;
        nodedb_status one;
        if (q->found[i] != NODEDB_VAMANA__RERUN) continue;
        q->found[i] = 0;
        one = nodedb_vamana__answer_one(q, i, &reason);
        if (one == NODEDB_OK) continue;
        status = one, end = i;
        if (err != NULL) *err = reason;
    }
    if (status != NODEDB_OK) q->failed = end;
    for (uint64_t i = end; i < n; i++) q->found[i] = 0;
    return status;
}

/* Resident layout: the device reads for some queries while others walk. Arrays of an index on disk never change, so no
 * reader is counted in. */
static nodedb_status nodedb_vamana__answer_resident(nodedb_vamana__query_batch *q, uint64_t n, nodedb_error *err) {
    nodedb_status status = NODEDB_OK, ended = NODEDB_OK;
    nodedb_error reason;
    uint64_t i, reads, retries, reads_now, retries_now;
    uint32_t walking = 0;
    bool stuck = false; /* reading has failed: the groups cannot be reranked */
    nodedb_vamana__reads_so_far(q->s, &reads, &retries);
    for (i = 0; i < n && status == NODEDB_OK; i++) {
        if (q->count[walking] == q->group_max) status = nodedb_vamana__next_group(q, &walking, err);
        stuck = status != NODEDB_OK;
        if (!stuck) status = nodedb_vamana__walk_pending(q, i, &walking, err);
    }
    /* queries before the one that failed are answered, unless they fail too */
    stuck = stuck || (status != NODEDB_OK && q->failed != i - 1);
    if (!stuck) ended = nodedb_vamana__next_group(q, &walking, &reason);
    if (!stuck && ended == NODEDB_OK) ended = nodedb_vamana__next_group(q, &walking, &reason);
    if (ended != NODEDB_OK) status = ended;
    if (ended != NODEDB_OK && err != NULL) *err = reason;
    status = nodedb_vamana__rerun(q, n, status, err);
    nodedb_vamana__reads_so_far(q->s, &reads_now, &retries_now);
    q->sum.reads = reads_now - reads, q->sum.retries = retries_now - retries;
    return status;
}

/* ---- many queries to the packed layout --------------------------------------------------------------------------- */

/* They walk side by side, each with a walker: while the reads of one are under way, the others expand theirs. */

#define NODEDB_VAMANA__WALKERS 16u

static void nodedb_vamana__free_walkers(nodedb_vamana_searcher *s) {
    uint32_t i;
    for (i = 0; i < NODEDB_VAMANA__WALKERS && s->walkers != NULL; i++) nodedb_vamana_searcher_destroy(s->walkers[i].s);
    nodedb__release(&s->allocator, s->walkers, NODEDB_VAMANA__WALKERS * sizeof *s->walkers);
    s->walkers = NULL;
}

static uint64_t nodedb_vamana__walkers_bytes(const nodedb_vamana_searcher *s) {
    uint64_t bytes = 0;
    uint32_t i;
    for (i = 0; i < NODEDB_VAMANA__WALKERS && s->walkers != NULL; i++)
        bytes += sizeof *s->walkers + nodedb_vamana_searcher_memory_bytes(s->walkers[i].s);
    return bytes;
}

/* Makes the walkers of a searcher. False: one query at a time. */
static bool nodedb_vamana__make_walkers(nodedb_vamana__query_batch *q, uint64_t n) {
    nodedb_vamana_searcher *s = q->s;
    if (n < 2 || s->fetcher.batch_max < NODEDB_VAMANA__WALKERS * NODEDB_VAMANA__WINDOW) return false;
    if (s->walkers == NULL)
        s->walkers = (nodedb_vamana__walker *)nodedb__alloc_zero(&s->allocator,
                                                                 NODEDB_VAMANA__WALKERS * sizeof *s->walkers,
                                                                 NODEDB_CACHE_LINE_BYTES);
    for (uint32_t i = 0; i < NODEDB_VAMANA__WALKERS && s->walkers != NULL; i++) {
        nodedb_vamana__walker *walker = &s->walkers[i];
        if (walker->s == NULL) walker->s = nodedb_vamana__searcher_new(s->index, s->beam_max, s->fits, false, NULL);
        if (walker->s == NULL) return false;
        walker->s->arrays = s->arrays, walker->s->fetcher = s->fetcher, walker->busy = false;
    }
    return s->walkers != NULL;
}

static void nodedb_vamana__walker_failed(nodedb_vamana__query_batch *q, const nodedb_vamana__walker *walker,
                                         nodedb_status status, const nodedb_error *reason, nodedb_status *first,
                                         nodedb_error *err) {
    if (*first != NODEDB_OK && q->failed < walker->query_index) return;
    *first = status, q->failed = walker->query_index;
    if (err != NULL) *err = *reason;
}

/* Copies the results of a walker whose walk has ended. If they are too few, answers the query in the usual way. */
static nodedb_status nodedb_vamana__walker_end(nodedb_vamana__query_batch *q, nodedb_vamana__walker *walker,
                                               nodedb_error *err) {
    nodedb_vamana_searcher *s = walker->s;
    walker->busy = false;
    if (walker->plan.way == NODEDB_VAMANA__BY_SCAN || walker->found < walker->plan.k)
        return nodedb_vamana__answer_one(q, walker->query_index, err);
    if (walker->plan.in_doubt) {
        nodedb_status status = nodedb_vamana__answer_exactly(s, q->common, &walker->plan, walker->norm,
                                                             &walker->found, err);
        if (status == NODEDB_OK) status = nodedb_vamana__read_failure(s, err);
        if (status != NODEDB_OK) return status;
        q->sum.scanned = q->sum.scanned || walker->plan.way == NODEDB_VAMANA__BY_SCAN;
    }
    q->sum.hops += s->hops, q->sum.distances += s->computed, q->sum.exact += s->exact;
    q->sum.damaged += s->read_errors.damaged;
    nodedb_vamana__sort_heap(s->arrays->ids, s->spare, walker->found);
    nodedb_vamana__copy_results(s, s->spare, walker->found, q->k, q->results + (size_t)walker->query_index * q->k,
                                &q->found[walker->query_index]);
    return NODEDB_OK;
}

/* One turn of a walker: expands what it waits for, announces more, and takes the next query at the end of one. */
static nodedb_status nodedb_vamana__walker_step(nodedb_vamana__query_batch *q, nodedb_vamana__walker *walker,
                                                uint64_t *next, uint64_t n, nodedb_error *err) {
    nodedb_status status = NODEDB_OK;
    if (walker->busy) {
        status = nodedb_vamana__walker_take(walker, q->common, err);
        if (status == NODEDB_OK) status = nodedb_vamana__walker_announce(walker, q->common, err);
        if (status != NODEDB_OK || walker->count > 0) return status;
        status = nodedb_vamana__walker_end(q, walker, err);
    }
    while (status == NODEDB_OK && !walker->busy && *next < n) {
        walker->query_index = (*next)++;
        status = nodedb_vamana__begin_query(walker->s, q->common,
                                            q->vectors + (size_t)walker->query_index * q->s->index->vector_bytes,
                                            false, &walker->plan, &walker->norm, err);
        if (status != NODEDB_OK) break;
        walker->busy = true;
        if (walker->plan.way != NODEDB_VAMANA__BY_SCAN) {
            nodedb_vamana__walker_begin(walker);
            status = nodedb_vamana__walker_announce(walker, q->common, err);
            if (status != NODEDB_OK || walker->count > 0) break;
        }
        status = nodedb_vamana__walker_end(q, walker, err);
    }
    return status;
}

/* Packed layout: walkers take turns. After a failure the queries before the failed one are still answered; none
 * behind. */
static nodedb_status nodedb_vamana__answer_packed(nodedb_vamana__query_batch *q, uint64_t n, nodedb_error *err) {
    nodedb_vamana_searcher *s = q->s;
    nodedb_status first = NODEDB_OK, status;
    nodedb_vamana_stats none;
    nodedb_error reason;
    uint64_t i, reads, retries, next = 0, end = n, busy;
    memset(&none, 0, sizeof none);
    nodedb_vamana__reads_so_far(s, &reads, &retries);
    do {
        for (i = 0, busy = 0; i < NODEDB_VAMANA__WALKERS; i++) {
            nodedb_vamana__walker *walker = &s->walkers[i];
            if (walker->busy && walker->query_index >= end) walker->busy = false;
            status = nodedb_vamana__walker_step(q, walker, &next, end, &reason);
            if (status != NODEDB_OK) {
                nodedb_vamana__walker_failed(q, walker, status, &reason, &first, err);
                walker->busy = false, end = q->failed;
            }
            busy += walker->busy;
        }
    } while (busy > 0 || next < end);
    for (i = end; i < n; i++) q->found[i] = 0;
    nodedb_vamana__reads_so_far(s, &q->sum.reads, &q->sum.retries);
    q->sum.reads -= reads, q->sum.retries -= retries;
    return first;
}

/* Answers many queries to an index on disk together. False: answer them one at a time. */
static bool nodedb_vamana__answer_on_disk(nodedb_vamana__query_batch *q, uint64_t n, nodedb_status *status,
                                          nodedb_error *err) {
    if (nodedb_vamana__is_packed(q->s->index)) {
        if (!nodedb_vamana__make_walkers(q, n)) return false;
        *status = nodedb_vamana__answer_packed(q, n, err);
    } else {
        if (!nodedb_vamana__make_pending(q, n)) return false;
        *status = nodedb_vamana__answer_resident(q, n, err);
    }
    return true;
}

/* ---- opening on disk --------------------------------------------------------------------------------------------- */

static bool nodedb_vamana__uring_works(const nodedb_vamana_open_config *config, const char *path) {
#if defined(NODEDB_VAMANA__URING)
    struct io_uring ring;
    int error;
#endif
    if (config->fetch != NODEDB_VAMANA_FETCH_AUTO || config->io.pread != NULL) return false; /* as asked for */
#if defined(NODEDB_VAMANA__URING)
    error = io_uring_queue_init(1, &ring, 0);
    if (error == 0) {
        io_uring_queue_exit(&ring);
        return true;
    }
    nodedb_say(&config->logger, NODEDB_LOG_WARNING,
                "%s: io_uring is refused (%s), so exact vectors are read one by one with pread, several times slower; "
                "allow io_uring_setup in the container's seccomp profile and in kernel.io_uring_disabled",
                path, strerror(-error));
#else
    nodedb_say(&config->logger, NODEDB_LOG_WARNING,
                "%s: built without liburing, so exact vectors are read one by one with pread, several times slower; "
                "install liburing-dev and build without NODEDB_NO_LIBURING",
                path);
#endif
    return false;
}

/* Opens the file with O_DIRECT if disk mode uses it. Some file systems refuse that at open, others at the first
 * read. */
static int nodedb_vamana__open_file(const nodedb_io *io, const char *path, const nodedb_vamana_open_config *config,
                                    uint8_t *block) {
    int fd = -EINVAL;
#if defined(O_DIRECT)
    if (config->mode == NODEDB_VAMANA_ON_DISK && !config->no_direct && config->fetch != NODEDB_VAMANA_FETCH_MAPPED) {
        fd = io->open(io->ctx, path, O_RDONLY | O_DIRECT, 0);
        if (fd >= 0 && io->pread(io->ctx, fd, block, NODEDB_VAMANA__BLOCK, 0) == -EINVAL) {
            (void)io->close(io->ctx, fd);
            fd = -EINVAL;
        }
        if (fd != -EINVAL) return fd;
        nodedb_say(&config->logger, NODEDB_LOG_WARNING,
                    "%s: this file system has no O_DIRECT, so exact vectors also fill the page cache; use ext4 or xfs",
                        path);
    }
#endif
    (void)block;
    return io->open(io->ctx, path, O_RDONLY, 0);
}

/* True if MADV_POPULATE_READ works, and fails where it must. (Linux before 5.14 does not have it, and an emulator may
 * let everything succeed.) */
static bool nodedb_vamana__can_populate(size_t page) {
    bool can = false;
#if defined(MADV_POPULATE_READ)
    uint8_t *pages = (uint8_t *)mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if ((void *)pages == MAP_FAILED) return false;
    if (mprotect(pages + page, page, PROT_NONE) == 0)
        can = madvise(pages, page, MADV_POPULATE_READ) == 0 && madvise(pages + page, page, MADV_POPULATE_READ) != 0;
    (void)munmap(pages, 2 * page);
#endif
    (void)page;
    return can;
}

/* Maps the records for a fetcher. If that is refused, logs it, and fetchers read. */
static void nodedb_vamana__map_records(nodedb_vamana *index, const nodedb_vamana_open_config *config) {
    nodedb_vamana__file *f = index->file;
    uint64_t from = f->layout.at[NODEDB_VAMANA__IN_RECORDS], bytes = f->layout.at[NODEDB_VAMANA__IN_RECORDS + 1] - from;
    long page = sysconf(_SC_PAGESIZE);
    void *map = MAP_FAILED;
    if (bytes == 0) return;
    if (config->io.pread == NULL && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && page > 0 && bytes < SIZE_MAX / 2 &&
        nodedb_vamana__can_populate((size_t)page))
        map = mmap(NULL, (size_t)(bytes + from % (uint64_t)page), PROT_READ, MAP_SHARED, f->fd,
                   (off_t)(from - from % (uint64_t)page));
    if (map == MAP_FAILED) {
        nodedb_say(&config->logger, NODEDB_LOG_WARNING,
                    "%s: cannot be mapped safely here, so exact vectors are read one by one with pread; use a local "
                    "file, Linux 5.14 and a little-endian machine, or io_uring",
                    f->path);
        return;
    }
    f->map = (uint8_t *)map, f->map_bytes = (size_t)(bytes + from % (uint64_t)page);
#if defined(MADV_RANDOM)
    (void)madvise(map, f->map_bytes, MADV_RANDOM);
#endif
}

/* Frees what only disk mode has. */
static void nodedb_vamana__free_disk(nodedb_vamana *index) {
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__arrays *a = index->arrays;
    for (int i = 0; i < NODEDB_VAMANA__SECTIONS; i++) {
        nodedb_vamana__release(index, f->parts[i].memory, f->parts[i].bytes, 1);
        nodedb_vamana__release(index, f->parts[i].chunks, f->parts[i].count, 1);
    }
    if (a != NULL && f->parts[NODEDB_VAMANA__IN_TABLE].memory != NULL) { /* the arrays borrowed them */
        a->states = NULL, a->ids = NULL, a->norms = NULL, a->rows = NULL, a->heads = NULL, a->codes = NULL,
        a->table = NULL;
    }
    if (f->cache.fetcher.ctx != NULL) f->cache.fetcher.destroy(f->cache.fetcher.ctx);
    nodedb_vamana__release(index, f->cache.slots, f->cache.max, sizeof *f->cache.slots);
    nodedb_vamana__release(index, f->cache.places, f->cache.places_size, sizeof *f->cache.places);
    nodedb_vamana__release(index, f->cache.records, f->cache.max, f->cache.stride);
    nodedb_vamana__release(index, f->damaged, (size_t)(f->layout.blocks / 8 + 2), 1);
    if (f->map != NULL) (void)munmap(f->map, f->map_bytes);
}

/* Memory for the sections that searches use. Nothing of them is read yet. */
static nodedb_status nodedb_vamana__make_parts(nodedb_vamana *index, nodedb_vamana__coder *coder, uint32_t slots,
                                               nodedb_error *err) {
    static const int wanted[] = {NODEDB_VAMANA__IN_STATES, NODEDB_VAMANA__IN_IDS,   NODEDB_VAMANA__IN_NORMS,
                                 NODEDB_VAMANA__IN_ROWS,   NODEDB_VAMANA__IN_HEADS, NODEDB_VAMANA__IN_CODES,
                                 NODEDB_VAMANA__IN_TABLE};
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__arrays *a =
        (nodedb_vamana__arrays *)nodedb_vamana__alloc(index, 1, sizeof *a, NODEDB_CACHE_LINE_BYTES);
    if (a == NULL) {
        nodedb_vamana__free_coder(index, coder);
        return nodedb_vamana__no_memory(err, "open", f->path);
    }
    index->arrays = a, a->coder = coder;
    if (coder != NULL) nodedb_vamana__count_bytes(index, nodedb_vamana__coder_bytes(index), 0);
    f->damaged = (uint8_t *)nodedb_vamana__alloc(index, (size_t)(f->layout.blocks / 8 + 2), 1, sizeof(void *));
    if (f->damaged == NULL)
        return nodedb_vamana__no_memory(err, "open", f->path);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        nodedb_vamana__part *p = &f->parts[wanted[i]];
        uint64_t bytes = f->layout.at[wanted[i] + 1] - f->layout.at[wanted[i]];
        if (bytes == 0) continue;
        p->bytes = (size_t)bytes, p->count = (size_t)((bytes + NODEDB_VAMANA__CHUNK - 1) / NODEDB_VAMANA__CHUNK);
        if (bytes == p->bytes) p->memory = (uint8_t *)nodedb_vamana__alloc_raw(index, p->bytes, NODEDB_VAMANA__BLOCK);
        p->chunks = (uint8_t *)nodedb_vamana__alloc(index, p->count, 1, NODEDB_CACHE_LINE_BYTES);
        if (p->memory == NULL || p->chunks == NULL)
            return nodedb_vamana__no_memory(err, "open", f->path);
        f->chunks_left += p->count;
    }
    a->capacity = a->slots = slots;
    a->states = f->parts[NODEDB_VAMANA__IN_STATES].memory;
    a->ids = (uint64_t *)(void *)f->parts[NODEDB_VAMANA__IN_IDS].memory;
    a->norms = (float *)(void *)f->parts[NODEDB_VAMANA__IN_NORMS].memory;
    a->rows = (uint32_t *)(void *)f->parts[NODEDB_VAMANA__IN_ROWS].memory;
    a->heads = (nodedb_vamana__head *)(void *)f->parts[NODEDB_VAMANA__IN_HEADS].memory;
    a->codes = f->parts[NODEDB_VAMANA__IN_CODES].memory;
    a->table = (uint32_t *)(void *)f->parts[NODEDB_VAMANA__IN_TABLE].memory;
    a->table_size = (size_t)f->layout.places;
    return NODEDB_OK;
}

/* Memory for the records of nodes near the starts. */
static nodedb_status nodedb_vamana__make_cache(nodedb_vamana *index, const nodedb_vamana_open_config *config,
                                               nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__cache *c = &f->cache;
    uint64_t bytes = config->cache_bytes, slots = index->arrays->slots, max;
    c->stride = ((size_t)f->layout.record_bytes + 63) / 64 * 64;
    if (bytes == 0) bytes = slots * c->stride / NODEDB_VAMANA__CACHE_SHARE;
    max = bytes / c->stride;
    if (max < NODEDB_VAMANA__CACHE_MIN && config->cache_bytes == 0) max = NODEDB_VAMANA__CACHE_MIN;
    if (max > slots) max = slots;
    if (max > UINT32_C(1) << 30) max = UINT32_C(1) << 30;
    if (max == 0) return NODEDB_OK;
    c->max = (uint32_t)max;
    for (c->places_size = 16; c->places_size < 2 * max;) c->places_size *= 2;
    c->slots = (uint32_t *)nodedb_vamana__alloc(index, c->max, sizeof *c->slots, sizeof(void *));
    c->places = (uint32_t *)nodedb_vamana__alloc(index, c->places_size, sizeof *c->places, sizeof(void *));
    c->records = (uint8_t *)nodedb_vamana__alloc_raw(index, c->max * c->stride, NODEDB_CACHE_LINE_BYTES);
    if (c->slots == NULL || c->places == NULL || c->records == NULL)
        return nodedb_vamana__no_memory(err, "open", f->path);
    memset(c->places, 0xFF, c->places_size * sizeof *c->places); /* NONE */
    return NODEDB_OK;
}

static nodedb_status nodedb_vamana__onto_disk(nodedb_vamana *index, const nodedb_vamana_open_config *config,
                                              const nodedb_vamana__counts *n, const uint8_t *header, uint8_t *buffer,
                                              nodedb_error *err) {
    nodedb_vamana__counts codes = *n;
    nodedb_vamana__coder *coder, *none;
    nodedb_vamana__reader r;
    nodedb_status status;
    uint32_t i;
    codes.recode_bits = 0;
    status = nodedb_vamana__make_coders(index, &codes, &coder, &none, err);
    if (status == NODEDB_OK) status = nodedb_vamana__make_parts(index, coder, n->slots, err);
    if (status != NODEDB_OK) return status;
    index->arrays->entry = n->entry;
    for (i = 0; i < NODEDB_VAMANA__STARTS_MAX; i++)
        index->arrays->starts[i] = nodedb_get_u32(header + NODEDB_VAMANA__AT_STARTS + 4 * i);
    if (index->arrays != NULL) index->arrays->zeros = nodedb_get_u32(header + NODEDB_VAMANA__AT_ZEROS) != 0;
    r = nodedb_vamana__reader_of(index, buffer, err);
    nodedb_vamana__read_from(&r, NODEDB_VAMANA__IN_MEANS);
    if (coder != NULL) status = nodedb_vamana__read_mean(&r, coder);
    if (status == NODEDB_OK && n->layout == NODEDB_VAMANA_PACKED)
        status = nodedb_vamana__make_cache(index, config, err);
    if (status != NODEDB_OK) return status;
    if (config->fetch == NODEDB_VAMANA_FETCH_MAPPED) nodedb_vamana__map_records(index, config);
    index->file->codes_are_judged = n->resident;
    index->file->uring = nodedb_vamana__uring_works(config, index->file->path);
    return NODEDB_OK;
}

/* Gives a searcher of an index on disk the caller's fetcher, or one of its own. */
static nodedb_status nodedb_vamana__set_fetcher(nodedb_vamana_searcher *s, const nodedb_vamana_fetcher *fetcher,
                                                uint32_t beam, nodedb_error *err) {
    const nodedb_vamana *index = s->index;
    uint32_t batch = beam < NODEDB_VAMANA_MAX_BATCH ? beam : NODEDB_VAMANA_MAX_BATCH; /* the pool is twice as large */
    nodedb_status status;
    if (batch < NODEDB_VAMANA__DEFAULT_BATCH) batch = NODEDB_VAMANA__DEFAULT_BATCH;
    if (fetcher == NULL) {
        status = nodedb_vamana_fetcher_disk(index, batch, &s->fetcher, err);
        s->own_fetcher = status == NODEDB_OK;
        return status;
    }
    if (nodedb_vamana__is_packed(index))
        return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "%s is packed: what it reads are nodes, not vectors alone",
                           index->file->path);
    if (fetcher->dim != index->dim || fetcher->batch_max == 0 || fetcher->prefetch_batch == NULL ||
        fetcher->fetch == NULL)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "the fetcher has no functions, or not %u components",
                           (unsigned)index->dim);
    s->fetcher = *fetcher;
    return NODEDB_OK;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static void nodedb_vamana__cache_want(nodedb_vamana__cache *c, uint32_t slot) {
    uint32_t place;
    if (c->count == c->max) return;
    place = nodedb_vamana__cache_place(c, slot);
    if (c->places[place] != NODEDB_VAMANA__NONE) return;
    c->slots[c->count] = slot, c->places[place] = c->count++;
}

/* Reads the next nodes into the cache; their rows tell which nodes follow. */
static nodedb_status nodedb_vamana__fill_cache(nodedb_vamana *index, nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    nodedb_vamana__cache *c = &f->cache;
    const nodedb_vamana__arrays *a = index->arrays;
    uint32_t n;
    nodedb_status status = NODEDB_OK;
    if (c->fetcher.ctx == NULL) {
        status = nodedb_vamana_fetcher_disk(index, 0, &c->fetcher, err);
        if (status != NODEDB_OK) return status;
        if (c->count == 0 && a->entry != NODEDB_VAMANA__NONE) nodedb_vamana__cache_want(c, a->entry);
        for (uint32_t i = 0; i < NODEDB_VAMANA__STARTS_MAX && a->starts[i] != NODEDB_VAMANA__NONE; i++)
            nodedb_vamana__cache_want(c, a->starts[i]);
    }
    n = c->count - c->filled < c->fetcher.batch_max ? c->count - c->filled : c->fetcher.batch_max;
    status = c->fetcher.prefetch_batch(c->fetcher.ctx, c->slots + c->filled, n, err);
    for (uint32_t i = 0; i < n && status == NODEDB_OK; i++) {
        nodedb_error reason;
        const uint8_t *record = (const uint8_t *)c->fetcher.fetch(c->fetcher.ctx, c->slots[c->filled], &reason);
        uint8_t *to = c->records + c->filled * c->stride;
        const uint32_t *row = (const uint32_t *)(const void *)(to + f->layout.row_at), none = NODEDB_VAMANA__NO_RECORD;
        if (record != NULL) memcpy(to, record, f->layout.record_bytes);
        else if (reason.status == NODEDB_ERR_CORRUPT) { /* searches will find it damaged, and skip it */
            memset(to, 0xFF, f->layout.record_bytes);
            memcpy(to + f->layout.row_at, &none, sizeof none);
        } else return nodedb_vamana__pass_on(&reason, err);
        c->filled++;
        for (uint32_t j = 0; j < index->degree && row[j] < a->slots; j++) nodedb_vamana__cache_want(c, row[j]);
    }
    if (status == NODEDB_OK && c->filled == c->count) {
        c->fetcher.destroy(c->fetcher.ctx);
        memset(&c->fetcher, 0, sizeof c->fetcher);
        __atomic_store_n(&c->ready, true, __ATOMIC_RELEASE);
    }
    return status;
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_load(nodedb_vamana *index, uint64_t budget, bool *more,
                                                   nodedb_error *err) {
    nodedb_vamana__file *f = index == NULL ? NULL : index->file;
    uint64_t read = 0;
    if (more != NULL) *more = false;
    if (index == NULL || more == NULL || budget == 0)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "index or more is NULL, or the budget is 0");
    if (f == NULL) return NODEDB_OK; /* everything is in memory */
    for (; f->load_section < NODEDB_VAMANA__SECTIONS; f->load_section++, f->load_chunk = 0) {
        nodedb_vamana__part *p = &f->parts[f->load_section];
        for (; f->load_chunk < p->count; f->load_chunk++) {
            uint8_t now;
            nodedb_status status;
            *more = read >= budget;
            if (*more) return NODEDB_OK;
            if (!nodedb_vamana__claim(&p->chunks[f->load_chunk], &now)) continue;
            status = nodedb_vamana__load_chunk(index, f->load_section, f->load_chunk, err);
            if (status != NODEDB_OK) return status;
            read += NODEDB_VAMANA__CHUNK;
        }
    }
    while (f->cache.max > 0 && !f->cache.ready) {
        nodedb_status status;
        *more = read >= budget;
        if (*more) return NODEDB_OK;
        status = nodedb_vamana__fill_cache(index, err);
        if (status != NODEDB_OK) return status;
        read += NODEDB_VAMANA__DEFAULT_BATCH * NODEDB_VAMANA__BLOCK;
    }
    return NODEDB_OK;
}

/* ---- verifying the meaning of a file ----------------------------------------------------------------------------- */

/* All blocks match their checksums: checks that their contents fit each other. */
static nodedb_status nodedb_vamana__verify_sections(nodedb_vamana *index, uint8_t *buffer, nodedb_error *err) {
    nodedb_vamana__file *f = index->file;
    const nodedb_vamana__arrays *a = index->arrays;
    uint64_t entries = 0;
    uint32_t slot;
    nodedb_vamana__read_errors errors;
    nodedb_vamana__reader r;
    nodedb_vamana__tree_check tree;
    uint8_t *record;
    uint32_t *next = NULL;
    size_t next_bytes = ((size_t)a->slots + 1) * sizeof *next;
    nodedb_status status = NODEDB_OK;
    bool more = true;
    memset(&errors, 0, sizeof errors);
    f->cache.ready = true; /* verify does not use the cache */
    while (more && status == NODEDB_OK) status = nodedb_vamana_load(index, UINT64_MAX, &more, err);
    for (uint64_t at = 0; at < f->layout.at[NODEDB_VAMANA__SECTIONS] &&
         f->damaged_blocks > 0; at += NODEDB_VAMANA__BLOCK)
        if (at < f->layout.at[NODEDB_VAMANA__IN_SUMS] && nodedb_vamana__in_quarantine(f, at))
            return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, at, f->path,
                                             "the block matches its checksum and makes no sense");
    if (status == NODEDB_OK) status = nodedb_vamana__check_slots(index, f->layout.row_at == 0, err);
    for (slot = 0; slot < a->slots && status == NODEDB_OK; slot++)
        if (a->states[slot] == NODEDB_VAMANA__LIVE &&
            nodedb_vamana__find_on_disk(index, a->ids[slot], &errors) != slot)
            status = nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_IDS, slot,
                                                 "an id is not where the table has it, or there twice", err);
    for (uint64_t at = 0; at < f->layout.places &&
         status == NODEDB_OK; at++) entries += a->table[at] != NODEDB_VAMANA__NONE;
    if (status == NODEDB_OK && entries != index->live)
        status = nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_STATES, 0,
                                             "the table of ids has more of them than the header", err);
    if (status != NODEDB_OK) return status;
    r = nodedb_vamana__reader_of(index, buffer, err);
    record = (uint8_t *)nodedb__alloc(&index->allocator, f->layout.record_bytes + (size_t)8, NODEDB_CACHE_LINE_BYTES);
    if (f->layout.row_at > 0)
        next = (uint32_t *)nodedb__alloc(&index->allocator, next_bytes, NODEDB_CACHE_LINE_BYTES);
    if (!nodedb_vamana__tree_check_begin(index, &tree) || record == NULL || (next == NULL && f->layout.row_at > 0))
        status = nodedb_vamana__no_memory(err, "verify", f->path);
    nodedb_vamana__read_from(&r, NODEDB_VAMANA__IN_PARENTS);
    for (slot = 0; slot < a->slots && status == NODEDB_OK; slot++) {
        status = nodedb_vamana__read(&r, &tree.nodes[slot].parent, sizeof tree.nodes[slot].parent);
        nodedb_vamana__swap_words(&tree.nodes[slot].parent, sizeof tree.nodes[slot].parent, 4);
    }
    for (slot = 0; slot < a->slots && status == NODEDB_OK && a->rows != NULL; slot++)
        nodedb_vamana__tree_check_row(index, &tree, slot, nodedb_vamana__row(index, a, slot));
    if (status == NODEDB_OK) status = nodedb_vamana__read_records(&r, record, next, &tree, false);
    if (status == NODEDB_OK && next != NULL && !nodedb_vamana__is_chain(index, next, 1, &slot))
        status = nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, nodedb_vamana__record_at(&f->layout, slot),
                                           f->path, "the free slots are not one chain");
    if (status == NODEDB_OK && !nodedb_vamana__is_tree(index, &tree, &slot))
        status = nodedb_vamana__invalid_slot(index, NODEDB_VAMANA__IN_PARENTS, slot,
                                             "a vector cannot be reached, or a row names one twice", err);
    nodedb__release(&index->allocator, tree.nodes, tree.bytes);
    nodedb__release(&index->allocator, record, f->layout.record_bytes + (size_t)8);
    nodedb__release(&index->allocator, next, next_bytes);
    return status;
}

static nodedb_status nodedb_vamana__verify_meaning(const char *path, const nodedb_vamana_open_config *config,
                                                   uint8_t *buffer, nodedb_error *err) {
    nodedb_vamana *index = nodedb_vamana__open_any(path, config, false, err);
    nodedb_status status = index == NULL ? err->status : nodedb_vamana__verify_sections(index, buffer, err);
    nodedb_vamana_destroy(index);
    return status;
}

/* ---- fetchers ---------------------------------------------------------------------------------------------------- */

static nodedb_status nodedb_vamana__slot_error(nodedb_error *err, uint32_t slot, uint32_t slots) {
    return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "slot %u is not below %u", (unsigned)slot, (unsigned)slots);
}

static nodedb_status nodedb_vamana__check_batch(const nodedb_vamana *index, uint32_t batch_max, const uint32_t *slots,
                                                size_t n, nodedb_error *err) {
    size_t i;
    if (slots == NULL) return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "slots is NULL");
    if (n > batch_max)
        return nodedb_fail(err, NODEDB_ERR_LIMIT, 0, "%llu slots are over the fetcher's %u", (unsigned long long)n,
                            (unsigned)batch_max);
    for (i = 0; i < n; i++)
        if (slots[i] >= index->arrays->slots) return nodedb_vamana__slot_error(err, slots[i], index->arrays->slots);
    return NODEDB_OK;
}

/* The error for a record whose blocks are damaged. */
static nodedb_status nodedb_vamana__damaged_record(const nodedb_vamana *index, uint64_t offset, nodedb_error *err) {
    return nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, offset, index->file->path,
                                     "read twice, does not match its checksum");
}

/* True if a block of a record is quarantined. */
static bool nodedb_vamana__record_in_quarantine(const nodedb_vamana__file *f, uint64_t offset) {
    for (uint32_t i = 0; i < f->layout.blocks_per_record && nodedb__load_relaxed(&f->damaged_blocks) > 0; i++)
        if (nodedb_vamana__in_quarantine(f, offset + (uint64_t)i * NODEDB_VAMANA_BLOCK_BYTES)) return true;
    return false;
}

/* ---- fetching from a mapping ------------------------------------------------------------------------------------- */

/* What is announced is asked for with madvise. Before it is used it is populated, which waits, and which is refused
 * where touching it would raise SIGBUS; then its blocks are checked. */

/* A fetcher over a mapping; of one thread at a time. */
typedef struct nodedb_vamana__mapped {
    nodedb_vamana *index;
    nodedb_allocator allocator;
    uint8_t *scratch;  /* blocks_per_record blocks, read into where populating fails */
    uint32_t batch_max;
    uint64_t reads;
} nodedb_vamana__mapped;

/* The pages of a map around the record at this offset of the file. */
static uint8_t *nodedb_vamana__pages_of(const nodedb_vamana__file *f, uint64_t offset, size_t *bytes) {
    uint64_t from = f->layout.at[NODEDB_VAMANA__IN_RECORDS], page = (uint64_t)sysconf(_SC_PAGESIZE);
    size_t at = (size_t)(offset - (from - from % page)), low = at / (size_t)page * (size_t)page;
    *bytes = at + (size_t)f->layout.blocks_per_record * NODEDB_VAMANA__BLOCK - low;
    return f->map + low;
}

static uint64_t nodedb_vamana__block_of(const nodedb_vamana *index, uint32_t slot) {
    return nodedb_vamana__record_at(&index->file->layout, slot) / NODEDB_VAMANA_BLOCK_BYTES *
           NODEDB_VAMANA_BLOCK_BYTES;
}

static nodedb_status nodedb_vamana__mapped_prefetch(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err) {
    nodedb_vamana__mapped *m = (nodedb_vamana__mapped *)ctx;
    nodedb_status status = nodedb_vamana__check_batch(m->index, m->batch_max, slots, n, err);
    size_t i, bytes;
    for (i = 0; i < n && status == NODEDB_OK; i++) {
        uint8_t *pages = nodedb_vamana__pages_of(m->index->file, nodedb_vamana__block_of(m->index, slots[i]), &bytes);
#if defined(MADV_WILLNEED)
        (void)madvise(pages, bytes, MADV_WILLNEED);
#else
        (void)pages;
#endif
    }
    return status;
}

static const void *nodedb_vamana__mapped_fetch(void *ctx, uint32_t slot, nodedb_error *err) {
    nodedb_vamana__mapped *m = (nodedb_vamana__mapped *)ctx;
    nodedb_vamana__file *f = m->index->file;
    uint64_t offset, within;
    uint8_t *pages, *block;
    size_t bytes, at, whole = (size_t)f->layout.blocks_per_record * NODEDB_VAMANA__BLOCK;
    nodedb_status status;
    int error = -1;
    if (slot >= m->index->arrays->slots) {
        (void)nodedb_vamana__slot_error(err, slot, m->index->arrays->slots);
        return NULL;
    }
    offset = nodedb_vamana__block_of(m->index, slot);
    within = nodedb_vamana__record_at(&f->layout, slot) - offset;
    if (nodedb_vamana__record_in_quarantine(f, offset)) {
        (void)nodedb_vamana__damaged_record(m->index, offset, err);
        return NULL;
    }
    m->reads++; /* also if the page cache has it */
    pages = nodedb_vamana__pages_of(f, offset, &bytes);
    block = pages + (bytes - whole);
#if defined(MADV_POPULATE_READ)
    error = madvise(pages, bytes, MADV_POPULATE_READ);
#else
    (void)pages;
#endif
    if (error != 0) { /* a read tells why, or succeeds */
        status = nodedb_vamana__read_at(m->index, m->scratch, whole, offset, err);
        if (status == NODEDB_ERR_CORRUPT) nodedb_vamana__quarantine(m->index, offset);
        if (status != NODEDB_OK) return NULL;
        block = m->scratch;
    }
    for (at = 0; at < whole; at += NODEDB_VAMANA__BLOCK) {
        status = nodedb_vamana__check_block(m->index, offset + at, block + at, err);
        if (status == NODEDB_ERR_CORRUPT) {
            nodedb_vamana__quarantine(m->index, offset + at);
            (void)nodedb_vamana__damaged_record(m->index, offset, err);
        }
        if (status != NODEDB_OK) return NULL;
    }
    return block + within;
}

static void nodedb_vamana__mapped_counters(void *ctx, uint64_t *reads, uint64_t *retries) {
    *reads = ((const nodedb_vamana__mapped *)ctx)->reads, *retries = 0;
}

static void nodedb_vamana__mapped_destroy(void *ctx) {
    nodedb_vamana__mapped *m = (nodedb_vamana__mapped *)ctx;
    nodedb_allocator allocator = m->allocator;
    nodedb__release(&allocator, m->scratch, m->index->file->layout.blocks_per_record * NODEDB_VAMANA__BLOCK);
    nodedb__release(&allocator, m, sizeof *m);
}

static nodedb_status nodedb_vamana__fetcher_mapped(nodedb_vamana *index, uint32_t batch_max,
                                                   nodedb_vamana_fetcher *fetcher, nodedb_error *err) {
    nodedb_vamana__mapped *m =
        (nodedb_vamana__mapped *)nodedb__alloc_zero(&index->allocator, sizeof *m, NODEDB_CACHE_LINE_BYTES);
    if (m != NULL)
        m->scratch = (uint8_t *)nodedb__alloc(
            &index->allocator, index->file->layout.blocks_per_record * NODEDB_VAMANA__BLOCK, NODEDB_VAMANA__BLOCK);
    if (m == NULL || m->scratch == NULL) {
        nodedb__release(&index->allocator, m, sizeof *m);
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a fetcher");
    }
    m->index = index, m->allocator = index->allocator, m->batch_max = batch_max;
    fetcher->ctx = m, fetcher->dim = index->dim, fetcher->batch_max = batch_max;
    fetcher->prefetch_batch = nodedb_vamana__mapped_prefetch, fetcher->fetch = nodedb_vamana__mapped_fetch;
    fetcher->counters = nodedb_vamana__mapped_counters, fetcher->destroy = nodedb_vamana__mapped_destroy;
    return NODEDB_OK;
}

/* ---- fetching by reads ------------------------------------------------------------------------------------------- */

/* A pool of buffers, each for the block (or blocks) of one record, twice as many as a batch has. Announcing takes the
 * buffers in turn, so what was announced stays until a whole batch more has been announced. A block that is there
 * already is not read again. Every read carries the number of its buffer as user_data, so that any completion goes
 * where it belongs. */

/* States of a buffer. WANTED -> READING: submitted. READING -> READY, or WANTED again after a first failure, or FAILED.
 * Any state but READING -> WANTED: the buffer is claimed for another offset. */
enum {
    NODEDB_VAMANA__BUFFER_WANTED, /* not submitted */
    NODEDB_VAMANA__BUFFER_READING,
    NODEDB_VAMANA__BUFFER_READY,
    NODEDB_VAMANA__BUFFER_FAILED
};

/* One buffer of a pool: for the block or blocks of one record. */
typedef struct nodedb_vamana__buffer {
    uint64_t offset;  /* in the file; 0: never used */
    uint32_t next;    /* buffer in the same place of `heads`, or NONE */
    uint32_t state, tries;
    int error;        /* of the last try: errno, or 0: the bytes do not match their checksum */
} nodedb_vamana__buffer;

/* How a fetcher reads. Fixed after its creation. */
typedef enum nodedb_vamana__reads_by {
    NODEDB_VAMANA__PREAD = 0,
    NODEDB_VAMANA__RING,           /* io_uring ... */
    NODEDB_VAMANA__REGISTERED_RING /* ... with registered buffers */
} nodedb_vamana__reads_by;

/* A fetcher by reads; of one thread at a time. It allocates only when it is created. */
typedef struct nodedb_vamana__disk {
    nodedb_vamana *index;
    nodedb_allocator allocator;
    size_t buffer_bytes;
    uint8_t *bytes;                  /* pool buffers, aligned to a block */
    nodedb_vamana__buffer *buffers;
    uint32_t *heads;                 /* buffers by offset: places with chains */
    uint32_t places;                 /* a power of two */
    uint32_t pool, batch_max;
    uint32_t at;                     /* the buffer to claim next */
    uint32_t wanted;                 /* buffers still to be submitted: the last ones that were claimed */
    uint32_t reading;                /* submitted and not completed */
    uint64_t reads, retries;
    nodedb_vamana__reads_by reads_by;
#if defined(NODEDB_VAMANA__URING)
    struct io_uring ring;
#endif
} nodedb_vamana__disk;

static uint8_t *nodedb_vamana__buffer_bytes(const nodedb_vamana__disk *d,
                                            uint32_t i) { return d->bytes + i * d->buffer_bytes; }

/* Converts the whole buffer to memory order. Once, when it is read, since a slot may be fetched twice. */
static void nodedb_vamana__swap_records(const nodedb_vamana__disk *d, uint8_t *bytes) {
    const nodedb_vamana__file_layout *l = &d->index->file->layout;
    uint32_t i = 0;
    if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) return;
    do nodedb_vamana__swap_record(d->index, l, bytes + (size_t)i * l->record_bytes);
    while (++i < l->records_per_block);
}

/* Completes a read with its result (bytes, or -errno): READY, WANTED once more, or FAILED. */
static void nodedb_vamana__complete_read(nodedb_vamana__disk *d, uint32_t i, int64_t result) {
    nodedb_vamana__buffer *b = &d->buffers[i];
    uint8_t *bytes = nodedb_vamana__buffer_bytes(d, i);
    nodedb_status status;
    nodedb_error reason;
    size_t bad = 0;
    if (result >= 0 && result < (int64_t)d->buffer_bytes) { /* a short read, or the file's end? */
        int error = nodedb__read_all(&d->index->io, d->index->file->fd, bytes, d->buffer_bytes, b->offset);
        result = error < 0 ? error : (int64_t)d->buffer_bytes;
    }
    status = result < 0 ? NODEDB_ERR_IO : NODEDB_OK, b->error = result < 0 ? (int)-result : 0;
    for (size_t at = 0; at < d->buffer_bytes && status == NODEDB_OK; at += NODEDB_VAMANA__BLOCK) {
        status = nodedb_vamana__check_block(d->index, b->offset + at, bytes + at, &reason), bad = at;
        if (status != NODEDB_OK && status != NODEDB_ERR_CORRUPT) b->error = reason.sys_errno; /* of their read */
    }
    b->tries++;
    if (status == NODEDB_OK) {
        nodedb_vamana__swap_records(d, bytes);
        b->state = NODEDB_VAMANA__BUFFER_READY;
    } else if (b->tries < NODEDB_VAMANA__READ_TRIES) {
        b->state = NODEDB_VAMANA__BUFFER_WANTED, d->retries++;
    } else {
        b->state = NODEDB_VAMANA__BUFFER_FAILED;
        if (b->error == 0 || b->error == ENODATA) nodedb_vamana__quarantine(d->index, b->offset + bad);
    }
}

static void nodedb_vamana__read_now(nodedb_vamana__disk *d, uint32_t i) {
    uint8_t *to = nodedb_vamana__buffer_bytes(d, i);
    while (d->buffers[i].state == NODEDB_VAMANA__BUFFER_WANTED) {
        int error = nodedb__read_all(&d->index->io, d->index->file->fd, to, d->buffer_bytes, d->buffers[i].offset);
        d->reads++;
        nodedb_vamana__complete_read(d, i, error < 0 ? error : (int64_t)d->buffer_bytes);
    }
}

#if defined(NODEDB_VAMANA__URING)
/* Prepares a read. False: the queue is full. */
static bool nodedb_vamana__prepare_read(nodedb_vamana__disk *d, uint32_t i) {
    struct io_uring_sqe *sqe = d->reading < NODEDB_VAMANA_QUEUE_DEPTH ? io_uring_get_sqe(&d->ring) : NULL;
    nodedb_vamana__buffer *b = &d->buffers[i];
    uint8_t *to = nodedb_vamana__buffer_bytes(d, i);
    int fd = d->index->file->fd;
    if (sqe == NULL) return false;
    assert(b->state == NODEDB_VAMANA__BUFFER_WANTED && b->offset % NODEDB_VAMANA_BLOCK_BYTES == 0);
    if (d->reads_by == NODEDB_VAMANA__REGISTERED_RING) io_uring_prep_read_fixed(sqe, fd, to, (unsigned)d->buffer_bytes,
                                                                                b->offset, 0);
    else io_uring_prep_read(sqe, fd, to, (unsigned)d->buffer_bytes, b->offset);
    io_uring_sqe_set_data(sqe, (void *)(uintptr_t)i);
    b->state = NODEDB_VAMANA__BUFFER_READING;
    d->reading++, d->reads++;
    return true;
}

/* Completes every read whose completion is in the ring. */
static void nodedb_vamana__reap(nodedb_vamana__disk *d) {
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&d->ring, &cqe) == 0 && cqe != NULL) {
        uint32_t i = (uint32_t)(uintptr_t)io_uring_cqe_get_data(cqe);
        int64_t result = cqe->res;
        io_uring_cqe_seen(&d->ring, cqe);
        assert(i < d->pool && d->buffers[i].state == NODEDB_VAMANA__BUFFER_READING && d->reading > 0);
        d->reading--;
        nodedb_vamana__complete_read(d, i, result);
    }
}

/* Submits what is prepared and waits for `wait` completions. Interrupted and busy calls are repeated. After any other
 * error the kernel took nothing, and reads under way still complete. */
static int nodedb_vamana__enter_ring(nodedb_vamana__disk *d, unsigned wait) {
    int result;
    do {
        result = io_uring_submit_and_wait(&d->ring, wait);
        nodedb_vamana__reap(d);
    } while ((result == -EINTR || result == -EAGAIN || result == -EBUSY) && d->reading > 0);
    return result < 0 && result != -EINTR ? result : 0;
}
#endif

/* Prepares what was announced, as much as the queue takes. */
static void nodedb_vamana__prepare_reads(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    while (d->reads_by != NODEDB_VAMANA__PREAD && d->wanted > 0) {
        uint32_t i = (d->at + d->pool - d->wanted) % d->pool;
        if (d->buffers[i].state == NODEDB_VAMANA__BUFFER_WANTED && !nodedb_vamana__prepare_read(d, i)) return;
        d->wanted--;
    }
#else
    (void)d;
#endif
}

/* Waits until a buffer is READY or FAILED. 0, or -errno if the ring is broken. */
static int nodedb_vamana__wait_for(nodedb_vamana__disk *d, uint32_t i) {
#if defined(NODEDB_VAMANA__URING)
    while (d->reads_by != NODEDB_VAMANA__PREAD && d->buffers[i].state < NODEDB_VAMANA__BUFFER_READY) {
        int error;
        nodedb_vamana__prepare_reads(d);
        if (d->buffers[i].state == NODEDB_VAMANA__BUFFER_WANTED) (void)nodedb_vamana__prepare_read(d, i); /* again */
        error = nodedb_vamana__enter_ring(d, 1);
        if (error < 0) return error;
    }
#endif
    nodedb_vamana__read_now(d, i);
    return 0;
}

/* Waits until no read is under way. False: the ring is broken, and the kernel may still write into the pool. */
static bool nodedb_vamana__drain(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    while (d->reads_by != NODEDB_VAMANA__PREAD && d->reading > 0)
        if (nodedb_vamana__enter_ring(d, 1) < 0) return io_uring_sq_ready(&d->ring) == d->reading;
#endif
    (void)d;
    return true;
}

static uint32_t *nodedb_vamana__buffer_head(const nodedb_vamana__disk *d, uint64_t offset) {
    return &d->heads[nodedb_mix64(offset) & (d->places - 1)];
}

/* The buffer for an offset, or NONE. */
static uint32_t nodedb_vamana__buffer_for(const nodedb_vamana__disk *d, uint64_t offset) {
    uint32_t i = *nodedb_vamana__buffer_head(d, offset);
    while (i != NODEDB_VAMANA__NONE && d->buffers[i].offset != offset) i = d->buffers[i].next;
    return i;
}

/* Claims the next buffer in turn for an offset, and drops what it held. First it waits for a read into the buffer that
 * is still under way, which no caller needs any more. NONE: the ring is broken. */
static uint32_t nodedb_vamana__claim_buffer(nodedb_vamana__disk *d, uint64_t offset) {
    uint32_t i = d->at, *link;
    nodedb_vamana__buffer *b = &d->buffers[i];
#if defined(NODEDB_VAMANA__URING)
    while (b->state == NODEDB_VAMANA__BUFFER_READING)
        if (nodedb_vamana__enter_ring(d, 1) < 0) return NODEDB_VAMANA__NONE;
#endif
    if (b->offset != 0) {
        link = nodedb_vamana__buffer_head(d, b->offset);
        while (*link != i) link = &d->buffers[*link].next;
        *link = b->next;
    }
    link = nodedb_vamana__buffer_head(d, offset);
    b->offset = offset, b->next = *link, *link = i;
    b->state = NODEDB_VAMANA__BUFFER_WANTED, b->tries = 0, b->error = 0;
    d->at = (i + 1) % d->pool;
    if (d->wanted < d->pool) d->wanted++;
    return i;
}

static nodedb_status nodedb_vamana__disk_prefetch(void *ctx, const uint32_t *slots, size_t n, nodedb_error *err) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    nodedb_status status = nodedb_vamana__check_batch(d->index, d->batch_max, slots, n, err);
    size_t k;
    if (status != NODEDB_OK) return status;
    for (k = 0; k < n; k++) {
        uint64_t offset = nodedb_vamana__block_of(d->index, slots[k]);
        uint32_t had = nodedb_vamana__buffer_for(d, offset), i;
        if (had != NODEDB_VAMANA__NONE && d->buffers[had].state != NODEDB_VAMANA__BUFFER_FAILED) {
            uint32_t age = (d->at + d->pool - had - 1) % d->pool; /* buffers that were claimed after it */
            if (age + (n - k) <= d->pool - d->batch_max) continue;
        }
        i = nodedb_vamana__claim_buffer(d, offset);
        if (i == NODEDB_VAMANA__NONE)
            return nodedb_fail(err, NODEDB_ERR_IO, 0, "%s: its io_uring is broken", d->index->file->path);
        if (nodedb_vamana__record_in_quarantine(d->index->file, offset)) {
            d->buffers[i].state = NODEDB_VAMANA__BUFFER_FAILED;
        } else if (had != NODEDB_VAMANA__NONE && had != i && d->buffers[had].offset == offset &&
                   d->buffers[had].state == NODEDB_VAMANA__BUFFER_READY) { /* its turn comes too soon */
            memcpy(nodedb_vamana__buffer_bytes(d, i), nodedb_vamana__buffer_bytes(d, had), d->buffer_bytes);
            d->buffers[i].state = NODEDB_VAMANA__BUFFER_READY;
        }
    }
    nodedb_vamana__prepare_reads(d);
#if defined(NODEDB_VAMANA__URING)
    if (d->reads_by != NODEDB_VAMANA__PREAD) (void)nodedb_vamana__enter_ring(d, 0); /* waits meet its error again */
#endif
    return NODEDB_OK;
}

static const void *nodedb_vamana__disk_fetch(void *ctx, uint32_t slot, nodedb_error *err) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    const char *path = d->index->file->path;
    const nodedb_vamana__buffer *b;
    uint64_t offset;
    uint32_t i;
    int error;
    if (slot >= d->index->arrays->slots) {
        (void)nodedb_vamana__slot_error(err, slot, d->index->arrays->slots);
        return NULL;
    }
    offset = nodedb_vamana__block_of(d->index, slot);
    i = nodedb_vamana__buffer_for(d, offset);
    if (i == NODEDB_VAMANA__NONE) {
        (void)nodedb_fail(err, NODEDB_ERR_STATE, 0, "slot %u was not announced by prefetch_batch", (unsigned)slot);
        return NULL;
    }
    error = nodedb_vamana__wait_for(d, i);
    b = &d->buffers[i];
    if (error == 0 && b->state == NODEDB_VAMANA__BUFFER_READY)
        return nodedb_vamana__buffer_bytes(d, i) +
               (size_t)(nodedb_vamana__record_at(&d->index->file->layout, slot) - offset);
    if (error == 0) error = -b->error;
    if (error == 0) (void)nodedb_vamana__damaged_record(d->index, offset, err);
    else if (error == -ENODATA)
        (void)nodedb_vamana__file_error(err, NODEDB_ERR_CORRUPT, 0, offset, path, "the file ends early");
    else
        (void)nodedb_vamana__file_error(err, nodedb_io_status(-error), -error, offset, path,
                                        "cannot be read, tried twice");
    return NULL;
}

static void nodedb_vamana__disk_counters(void *ctx, uint64_t *reads, uint64_t *retries) {
    const nodedb_vamana__disk *d = (const nodedb_vamana__disk *)ctx;
    *reads = d->reads, *retries = d->retries;
}

static void nodedb_vamana__disk_destroy(void *ctx) {
    nodedb_vamana__disk *d = (nodedb_vamana__disk *)ctx;
    nodedb_allocator allocator = d->allocator;
    bool drained = nodedb_vamana__drain(d);
#if defined(NODEDB_VAMANA__URING)
    if (d->reads_by != NODEDB_VAMANA__PREAD) io_uring_queue_exit(&d->ring);
#endif
    if (!drained) d->bytes = NULL; /* leak it: the kernel may still write into it */
    nodedb__release(&allocator, d->heads, d->places * sizeof *d->heads);
    nodedb__release(&allocator, d->buffers, d->pool * sizeof *d->buffers);
    nodedb__release(&allocator, d->bytes, d->pool * d->buffer_bytes);
    nodedb__release(&allocator, d, sizeof *d);
}

/* Makes the fetcher's ring and registers the pool with it. If the system refuses either, logs it and goes without. */
static void nodedb_vamana__disk_ring(nodedb_vamana__disk *d) {
#if defined(NODEDB_VAMANA__URING)
    struct iovec pool;
    int error;
    if (!d->index->file->uring || d->batch_max == 1) return; /* one read at a time gains nothing */
    error = io_uring_queue_init(NODEDB_VAMANA_QUEUE_DEPTH, &d->ring, 0);
    if (error < 0) {
        nodedb_say(&d->index->logger, NODEDB_LOG_WARNING,
                    "%s: no io_uring for this searcher (%s), it reads with pread; raise the limit of locked memory",
                    d->index->file->path, strerror(-error));
        return;
    }
    d->reads_by = NODEDB_VAMANA__RING;
    pool.iov_base = d->bytes, pool.iov_len = d->pool * d->buffer_bytes;
    error = io_uring_register_buffers(&d->ring, &pool, 1);
    if (error == 0) d->reads_by = NODEDB_VAMANA__REGISTERED_RING;
    if (error < 0)
        nodedb_say(&d->index->logger, NODEDB_LOG_INFO,
                    "%s: read buffers are not registered (%s), so each read maps its own; raise RLIMIT_MEMLOCK",
                    d->index->file->path, strerror(-error));
#else
    (void)d;
#endif
}

NODEDB_VAMANA_API nodedb_status nodedb_vamana_fetcher_disk(const nodedb_vamana *of, uint32_t batch_max,
                                                           nodedb_vamana_fetcher *fetcher, nodedb_error *err) {
    nodedb_vamana *index = (nodedb_vamana *)(uintptr_t)of; /* damage that is found is noted in the file struct */
    nodedb_vamana__disk *d;
    if (index == NULL || fetcher == NULL || batch_max > NODEDB_VAMANA_MAX_BATCH)
        return nodedb_fail(err, NODEDB_ERR_INVALID, 0, "index or fetcher is NULL, or batch_max is over %u",
                            NODEDB_VAMANA_MAX_BATCH);
    if (index->file == NULL) return nodedb_fail(err, NODEDB_ERR_STATE, 0, "the index was not opened on disk");
    memset(fetcher, 0, sizeof *fetcher);
    if (batch_max == 0) batch_max = NODEDB_VAMANA__DEFAULT_BATCH;
    if (index->file->map != NULL) return nodedb_vamana__fetcher_mapped(index, batch_max, fetcher, err);
    d = (nodedb_vamana__disk *)nodedb__alloc_zero(&index->allocator, sizeof *d, NODEDB_CACHE_LINE_BYTES);
    if (d == NULL) return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a fetcher");
    d->index = index, d->allocator = index->allocator;
    d->batch_max = batch_max, d->pool = 2 * batch_max;
    d->buffer_bytes = (size_t)index->file->layout.blocks_per_record * NODEDB_VAMANA__BLOCK;
    for (d->places = 16; d->places < 2 * d->pool;) d->places *= 2;
    d->bytes = (uint8_t *)nodedb__alloc(&d->allocator, d->pool * d->buffer_bytes, NODEDB_VAMANA__BLOCK);
    d->buffers = (nodedb_vamana__buffer *)nodedb__alloc_zero(&d->allocator, d->pool * sizeof *d->buffers,
                                                             sizeof(void *));
    d->heads = (uint32_t *)nodedb__alloc(&d->allocator, d->places * sizeof *d->heads, sizeof(void *));
    if (d->bytes == NULL || d->buffers == NULL || d->heads == NULL) {
        nodedb_vamana__disk_destroy(d);
        return nodedb_fail(err, NODEDB_ERR_NO_MEMORY, 0, "no memory for a fetcher's buffers");
    }
    memset(d->heads, 0xFF, d->places * sizeof *d->heads); /* NONE */
    nodedb_vamana__disk_ring(d);
    fetcher->ctx = d, fetcher->dim = index->dim, fetcher->batch_max = d->batch_max;
    fetcher->prefetch_batch = nodedb_vamana__disk_prefetch, fetcher->fetch = nodedb_vamana__disk_fetch;
    fetcher->counters = nodedb_vamana__disk_counters, fetcher->destroy = nodedb_vamana__disk_destroy;
    return NODEDB_OK;
}

/* ---- one vector -------------------------------------------------------------------------------------------------- */

/* Finds the slot of an id, and its norm, in an index on disk. NODEDB_ERR_CORRUPT: they are damaged. */
static nodedb_status nodedb_vamana__locate(const nodedb_vamana *index, uint64_t id, uint32_t *slot,
                                           nodedb_error *err) {
    nodedb_vamana__read_errors errors;
    memset(&errors, 0, sizeof errors);
    *slot = nodedb_vamana__find_on_disk(index, id, &errors);
    if (errors.failed == NODEDB_OK && *slot == NODEDB_VAMANA__NONE && errors.damaged == 0)
        return nodedb_vamana__no_such_id(id, err);
    if (*slot != NODEDB_VAMANA__NONE) errors.damaged = 0; /* damaged slots that the lookup skipped */
    if (errors.failed == NODEDB_OK && index->arrays->norms != NULL && *slot != NODEDB_VAMANA__NONE)
        (void)nodedb_vamana__have_norm(index, *slot, &errors);
    if (errors.failed != NODEDB_OK) {
        if (err != NULL) *err = errors.error;
        return errors.failed;
    }
    if (*slot != NODEDB_VAMANA__NONE && errors.damaged == 0) return NODEDB_OK;
    return nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s: what is there of id %llu is damaged", index->file->path,
                       (unsigned long long)id);
}

/* Reads the vector of a slot, and checks that it is one; NULL and the reason, in an err that must not be NULL. */
static const void *nodedb_vamana__fetch_slot(const nodedb_vamana *index, const nodedb_vamana_fetcher *fetcher,
                                             uint32_t slot, nodedb_error *err) {
    const void *vector = NULL;
    if (fetcher->prefetch_batch(fetcher->ctx, &slot, 1, err) == NODEDB_OK)
        vector = fetcher->fetch(fetcher->ctx, slot, err);
    if (vector == NULL || nodedb_vamana__is_vector(index, (const uint8_t *)vector)) return vector;
    (void)nodedb_fail(err, NODEDB_ERR_CORRUPT, 0, "%s: what stands in slot %u is no vector", index->file->path,
                      (unsigned)slot);
    return NULL;
}

static nodedb_status nodedb_vamana__get_from_disk(const nodedb_vamana *index, uint64_t id, void *out, bool stored,
                                                  nodedb_error *err) {
    nodedb_vamana_fetcher fetcher;
    nodedb_error reason;
    const void *vector;
    uint32_t slot;
    nodedb_status status = nodedb_vamana__locate(index, id, &slot, err);
    if (status == NODEDB_OK) status = nodedb_vamana_fetcher_disk(index, 1, &fetcher, err);
    if (status != NODEDB_OK) return status;
    vector = nodedb_vamana__fetch_slot(index, &fetcher, slot, &reason);
    if (vector != NULL)
        nodedb_vamana__copy_out(index, vector, nodedb_vamana__norm(index->arrays, slot), out, stored);
    else if (err != NULL) *err = reason;
    fetcher.destroy(fetcher.ctx);
    return vector != NULL ? NODEDB_OK : reason.status;
}

/* The same by the searcher's own fetcher, which takes no memory. */
static const void *nodedb_vamana__fetch_id(nodedb_vamana_searcher *s, uint64_t id, nodedb_error *err) {
    uint32_t slot;
    if (nodedb_vamana__locate(s->index, id, &slot, err) != NODEDB_OK) return NULL;
    return nodedb_vamana__fetch_slot(s->index, &s->fetcher, slot, err);
}

#else
/* ---- without disk mode: every index is in memory ----------------------------------------------------------------- */

static bool nodedb_vamana__is_packed(const nodedb_vamana *index) {
    (void)index;
    return false;
}
static bool nodedb_vamana__is_partial(const nodedb_vamana *index) {
    (void)index;
    return false;
}
static uint64_t nodedb_vamana__damaged_blocks(const nodedb_vamana *index) {
    (void)index;
    return 0;
}
static bool nodedb_vamana__have_row(const nodedb_vamana *index, uint32_t slot, nodedb_vamana__read_errors *errors) {
    (void)index, (void)slot, (void)errors;
    return true;
}
static bool nodedb_vamana__have_state(const nodedb_vamana *index, uint32_t slot, nodedb_vamana__read_errors *errors) {
    (void)index, (void)slot, (void)errors;
    return true;
}
static uint32_t nodedb_vamana__have_codes(nodedb_vamana_searcher *s, uint32_t count) {
    (void)s;
    return count;
}
static uint32_t nodedb_vamana__keep_valid(nodedb_vamana_searcher *s, uint32_t count) {
    (void)s;
    return count;
}
static const uint32_t *nodedb_vamana__row_here(nodedb_vamana_searcher *s, const nodedb_vamana__arrays *a,
                                               uint32_t slot) {
    return nodedb_vamana__row(s->index, a, slot);
}
static void nodedb_vamana__read_early(nodedb_vamana_searcher *s) {
    (void)s;
}
static nodedb_status nodedb_vamana__set_fetcher(nodedb_vamana_searcher *s, const nodedb_vamana_fetcher *fetcher,
                                                uint32_t beam, nodedb_error *err) {
    (void)s, (void)fetcher, (void)beam, (void)err;
    return NODEDB_OK;
}
static uint32_t nodedb_vamana__find_on_disk(const nodedb_vamana *index, uint64_t id,
                                            nodedb_vamana__read_errors *errors) {
    (void)index, (void)id, (void)errors;
    return NODEDB_VAMANA__NONE;
}
static nodedb_status nodedb_vamana__measure_fetched(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                                    nodedb_vamana__near *results, size_t most, size_t from, size_t n,
                                                    size_t *heap, nodedb_vamana__code_error *code_error,
                                                    nodedb_error *err) {
    (void)s, (void)exact, (void)results, (void)most, (void)from, (void)n, (void)heap, (void)code_error, (void)err;
    return NODEDB_OK;
}
static nodedb_status nodedb_vamana__measure_few(nodedb_vamana_searcher *s, const nodedb_vamana__target *exact,
                                                size_t most, size_t from, size_t n, size_t *told, size_t *few,
                                                size_t *heap, nodedb_vamana__code_error *code_error,
                                                nodedb_error *err) {
    (void)s, (void)exact, (void)most, (void)from, (void)n, (void)told, (void)few, (void)heap, (void)code_error,
    (void)err;
    return NODEDB_OK;
}
static nodedb_status nodedb_vamana__walk_packed(nodedb_vamana_searcher *s, const nodedb_vamana_query *query,
                                                nodedb_vamana__plan *plan, float norm, size_t *found,
                                                nodedb_error *err) {
    (void)s, (void)query, (void)plan, (void)norm, (void)found, (void)err;
    return NODEDB_OK;
}
static uint32_t nodedb_vamana__measure_read(nodedb_vamana_searcher *s, const nodedb_vamana__target *target,
                                            uint32_t count) {
    (void)s, (void)target;
    return count;
}
static void nodedb_vamana__walk_read(nodedb_vamana_searcher *s, const nodedb_vamana__target *target, uint32_t width) {
    (void)s, (void)target, (void)width;
}
static bool nodedb_vamana__codes_are_judged(const nodedb_vamana *index) {
    (void)index;
    return true;
}
static bool nodedb_vamana__answer_on_disk(nodedb_vamana__query_batch *q, uint64_t n, nodedb_status *status,
                                          nodedb_error *err) {
    (void)q, (void)n, (void)status, (void)err;
    return false;
}
static void nodedb_vamana__free_walkers(nodedb_vamana_searcher *s) {
    (void)s;
}
static uint64_t nodedb_vamana__walkers_bytes(const nodedb_vamana_searcher *s) {
    (void)s;
    return 0;
}
static int nodedb_vamana__open_file(const nodedb_io *io, const char *path, const nodedb_vamana_open_config *config,
                                    uint8_t *block) {
    (void)config, (void)block;
    return io->open(io->ctx, path, O_RDONLY, 0);
}
static nodedb_status nodedb_vamana__onto_disk(nodedb_vamana *index, const nodedb_vamana_open_config *config,
                                              const nodedb_vamana__counts *n, const uint8_t *header, uint8_t *buffer,
                                              nodedb_error *err) {
    (void)config, (void)n, (void)header, (void)buffer;
    return nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0,
                       "%s: built with NODEDB_VAMANA_NO_DISK, which opens files in memory only",
                       nodedb__path_end(index->file->path));
}
static nodedb_status nodedb_vamana__get_from_disk(const nodedb_vamana *index, uint64_t id, void *out, bool stored,
                                                  nodedb_error *err) {
    (void)index, (void)id, (void)out, (void)stored, (void)err;
    return NODEDB_OK;
}
static const void *nodedb_vamana__fetch_id(nodedb_vamana_searcher *s, uint64_t id, nodedb_error *err) {
    (void)s, (void)id, (void)err;
    return NULL;
}
static void nodedb_vamana__free_disk(nodedb_vamana *index) {
    (void)index;
}

/* Opening in memory makes the same checks, and does not read the table of ids, which only disk mode uses. */
static nodedb_status nodedb_vamana__verify_meaning(const char *path, const nodedb_vamana_open_config *config,
                                                   uint8_t *buffer, nodedb_error *err) {
    nodedb_vamana_open_config in_memory = *config;
    nodedb_vamana *index;
    (void)buffer;
    in_memory.mode = NODEDB_VAMANA_IN_MEMORY;
    index = nodedb_vamana__open_any(path, &in_memory, false, err);
    if (index == NULL) return err->status;
    nodedb_vamana_destroy(index);
    return NODEDB_OK;
}
#endif /* NODEDB_VAMANA_NO_DISK */

/* ===================================================================================================================
 * KERNELS: distances for each CPU
 *
 * One set for each instruction set, in one file without compiler flags: each function names its own target. Every set
 * has the functions of nodedb_vamana_kernels and the same over a list of slots, so that the inner loop of a search
 * makes one call for each node and not for each neighbour. Every set but the plain one is made of small pieces, for
 * which macros write the loops:
 *
 *   sums    the type of a running sum, whose lanes are added up at the end; of floats, signed or unsigned integers
 *   step    adds to the sums what WIDTH components of a query and a vector contribute
 *   rest    the same for the last components, fewer than WIDTH
 *   totals  the lanes of four sums added up: four numbers, of which `first` gives the first and `store` all, as floats
 *
 * The list takes four vectors at a time: what is made of the query (its odd bytes, say) is made once for the four, the
 * additions of the lanes are shared, and memory has four streams to deliver. Measured with AVX2, a list of 24 vectors
 * of 128 bytes: 6.7 -> 5.3 ns each from the cache; of 384 floats: 21 -> 15 ns, and 160 -> 130 ns from memory. One
 * vector alone is summed up in the same order, so that a distance is the same to the last bit however it was asked for.
 *
 * Integer sums: u8 products stay below 2^32 for all dimensions (255 * 255 * 65,536), those with an i8 below 2^31
 * (128 * 255 * 65,536), so 32-bit lanes that wrap add up to the right total in any order.
 * ================================================================================================================ */

/* Prefetches the vectors in slots[from .. to). */
NODEDB_VAMANA__INLINE void nodedb_vamana__prefetch_slots(const uint8_t *base, size_t stride, const uint32_t *slots,
                                                         size_t from, size_t to) {
    for (; from < to; from++) nodedb_vamana__prefetch(base + (size_t)slots[from] * stride, stride);
}
/* The vector in slots[i], whatever its components. */
static inline const void *nodedb_vamana__at(const uint8_t *base, size_t stride, const uint32_t *slots, size_t i) {
    return base + (size_t)slots[i] * stride;
}

/* NAME_many, one vector at a time: a fifth of the code of four at a time, for sets that are seldom used. */
#define NODEDB_VAMANA__ONE_BY_ONE(set, name, query_type, vector_type)                                                  \
    static void nodedb_vamana__##set##_##name##_many(const void *query, const uint8_t *base, size_t stride,            \
                                                     const uint32_t *slots, size_t count, size_t n, float *out) {      \
        size_t i;                                                                                                      \
        nodedb_vamana__prefetch_slots(base, stride, slots, 0, nodedb_vamana__min(NODEDB_VAMANA__AHEAD, count));        \
        for (i = 0; i < count; i++) {                                                                                  \
            nodedb_vamana__prefetch_slots(base, stride, slots, i + NODEDB_VAMANA__AHEAD,                               \
                                          nodedb_vamana__min(i + NODEDB_VAMANA__AHEAD + 1, count));                    \
            out[i] = nodedb_vamana__##set##_##name((const query_type *)query,                                          \
                                                   (const vector_type *)nodedb_vamana__at(base, stride, slots, i), n); \
        }                                                                                                              \
    }
/* The table of a set, whose functions of floats, and that which turns them, may be those of others. */
#define NODEDB_VAMANA__SET(set, floats, turns)                                                                         \
    static const nodedb_vamana__kernel_set nodedb_vamana__set_##set = {                                                \
        {#set, nodedb_vamana__##floats##_l2_f32, nodedb_vamana__##floats##_dot_f32, nodedb_vamana__##set##_l2_u8,      \
         nodedb_vamana__##set##_dot_u8, nodedb_vamana__##set##_l2_i8, nodedb_vamana__##set##_dot_i8,                   \
         nodedb_vamana__##set##_dot_i8_u8, nodedb_vamana__##set##_l2_code4, nodedb_vamana__##set##_dot_code4,          \
         nodedb_vamana__##floats##_dot_f32_u8},                                                                        \
        nodedb_vamana__##floats##_l2_f32_many, nodedb_vamana__##floats##_dot_f32_many,                                 \
        nodedb_vamana__##set##_l2_u8_many, nodedb_vamana__##set##_dot_u8_many, nodedb_vamana__##set##_l2_i8_many,      \
        nodedb_vamana__##set##_dot_i8_many, nodedb_vamana__##set##_dot_i8_u8_many,                                     \
        nodedb_vamana__##set##_l2_code4_many, nodedb_vamana__##set##_dot_code4_many,                                   \
        nodedb_vamana__##floats##_dot_f32_u8_many, nodedb_vamana__##turns##_turn_part};

/* ---- plain C ----------------------------------------------------------------------------------------------------- */

/* Floats: four chains, as one would wait for each addition. */
#define NODEDB_VAMANA__PLAIN_FLOATS(name, vector_type, term)                                                           \
    static float nodedb_vamana__plain_##name(const float *a, const vector_type *b, size_t n) {                         \
        float sum[4] = {0, 0, 0, 0};                                                                                   \
        size_t i, j;                                                                                                   \
        for (i = 0; i + 4 <= n; i += 4)                                                                                \
            for (j = 0; j < 4; j++) sum[j] += term(a[i + j], (float)b[i + j]);                                         \
        for (; i < n; i++) sum[0] += term(a[i], (float)b[i]);                                                          \
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);                                                                  \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, float, vector_type)
#define NODEDB_VAMANA__PLAIN_BYTES(name, query_type, vector_type, sum_type, term)                                      \
    static float nodedb_vamana__plain_##name(const query_type *a, const vector_type *b, size_t n) {                    \
        sum_type sum = 0;                                                                                              \
        size_t i;                                                                                                      \
        for (i = 0; i < n; i++) sum += (sum_type)term((int)a[i], (int)b[i]);                                           \
        return (float)sum;                                                                                             \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, query_type, vector_type)
#define NODEDB_VAMANA__PLAIN_CODE4(name, term)                                                                         \
    static float nodedb_vamana__plain_##name(const int8_t *q, const uint8_t *code, size_t n) {                         \
        int32_t sum = 0;                                                                                               \
        size_t i, half = NODEDB_VAMANA__CODE4_BLOCK / 2;                                                               \
        assert(n % NODEDB_VAMANA__CODE4_BLOCK == 0);                                                                   \
        for (i = 0; i < n / 2; i++) { /* a byte's two components are half a block apart */                             \
            const int8_t *at = q + (i / half * 2) * half + i % half;                                                   \
            sum += term((int)at[0], code[i] % 16) + term((int)at[half], code[i] / 16);                                 \
        }                                                                                                              \
        return (float)sum;                                                                                             \
    }                                                                                                                  \
    NODEDB_VAMANA__ONE_BY_ONE(plain, name, int8_t, uint8_t)
#define NODEDB_VAMANA__SQUARED_DIFFERENCE(a, b) (((a) - (b)) * ((a) - (b)))
#define NODEDB_VAMANA__PRODUCT(a, b) ((a) * (b))
#define NODEDB_VAMANA__CODE4_TERM(q, c) ((c) * (4 * (c) - (q)))

NODEDB_VAMANA__PLAIN_FLOATS(l2_f32, float, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_FLOATS(dot_f32, float, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_FLOATS(dot_f32_u8, uint8_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(l2_u8, uint8_t, uint8_t, uint32_t, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_BYTES(dot_u8, uint8_t, uint8_t, uint32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(l2_i8, int8_t, int8_t, uint32_t, NODEDB_VAMANA__SQUARED_DIFFERENCE)
NODEDB_VAMANA__PLAIN_BYTES(dot_i8, int8_t, int8_t, int32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_BYTES(dot_i8_u8, int8_t, uint8_t, int32_t, NODEDB_VAMANA__PRODUCT)
NODEDB_VAMANA__PLAIN_CODE4(l2_code4, NODEDB_VAMANA__CODE4_TERM)
NODEDB_VAMANA__PLAIN_CODE4(dot_code4, NODEDB_VAMANA__PRODUCT)

/* The signs of 64 components at a time, from the i-th on. */
static inline uint64_t nodedb_vamana__signs(uint64_t key, uint32_t i) { return nodedb_mix64(key + i); }

static void nodedb_vamana__plain_turn_part(float *x, uint32_t n, uint64_t key) {
    float scale = 1 / sqrtf((float)n);
    uint64_t signs = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i % 64 == 0) signs = nodedb_vamana__signs(key, i);
        if (signs >> i % 64 & 1) x[i] = -x[i];
    }
    for (uint32_t half = 1; half < n; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j++) {
                float a = x[j], b = x[j + half];
                x[j] = a + b, x[j + half] = a - b;
            }
    for (uint32_t i = 0; i < n; i++) x[i] *= scale;
}

NODEDB_VAMANA__SET(plain, plain, plain)

#if defined(NODEDB_VAMANA__X86) || defined(NODEDB_VAMANA__NEON)
/* ---- the loops around the pieces of a set ------------------------------------------------------------------------ */

#if !defined(NODEDB_VAMANA__TARGET)   /* a test defines both, to emulate instructions that this CPU lacks */
#define NODEDB_VAMANA__TARGET(names) __attribute__((target(names)))
#define NODEDB_VAMANA__CPU_HAS(name) __builtin_cpu_supports(name)
#endif

/* A set's kernel NAME, of its pieces. A vector has PER_ITEM components in each of its items: two for a 4-bit code. */
#define NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                          \
    target static float nodedb_vamana__##set##_##name(const query_type *q, const vector_type *v, size_t n) {           \
        nodedb_vamana__##set##_##sums s = nodedb_vamana__##set##_zero_##sums();                                        \
        size_t i;                                                                                                      \
        for (i = 0; i + (width) <= n; i += (width))                                                                    \
            s = nodedb_vamana__##set##_step_##name(s, q + i, v + i / (per_item));                                      \
        if (i < n) s = nodedb_vamana__##set##_rest_##name(s, q + i, v + i / (per_item), n - i);                        \
        return nodedb_vamana__first_##sums(nodedb_vamana__##set##_totals_##sums(s, s, s, s));                          \
    }
/* And NAME_many, four at a time. USUAL: a dimension worth a copy of the code in which it is a constant; or 0. */
#define NODEDB_VAMANA__FOURS(target, set, sums, name, query_type, vector_type, width, per_item, usual)                 \
    NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                              \
    target NODEDB_VAMANA__INLINE void nodedb_vamana__##set##_##name##_four(                                            \
        const query_type *q, const vector_type *v0, const vector_type *v1, const vector_type *v2,                      \
        const vector_type *v3, size_t n, float *out) {                                                                 \
        nodedb_vamana__##set##_##sums s0 = nodedb_vamana__##set##_zero_##sums(), s1 = s0, s2 = s0, s3 = s0;            \
        size_t i;                                                                                                      \
        for (i = 0; i + (width) <= n; i += (width)) {                                                                  \
            s0 = nodedb_vamana__##set##_step_##name(s0, q + i, v0 + i / (per_item));                                   \
            s1 = nodedb_vamana__##set##_step_##name(s1, q + i, v1 + i / (per_item));                                   \
            s2 = nodedb_vamana__##set##_step_##name(s2, q + i, v2 + i / (per_item));                                   \
            s3 = nodedb_vamana__##set##_step_##name(s3, q + i, v3 + i / (per_item));                                   \
        }                                                                                                              \
        if (i < n) {                                                                                                   \
            s0 = nodedb_vamana__##set##_rest_##name(s0, q + i, v0 + i / (per_item), n - i);                            \
            s1 = nodedb_vamana__##set##_rest_##name(s1, q + i, v1 + i / (per_item), n - i);                            \
            s2 = nodedb_vamana__##set##_rest_##name(s2, q + i, v2 + i / (per_item), n - i);                            \
            s3 = nodedb_vamana__##set##_rest_##name(s3, q + i, v3 + i / (per_item), n - i);                            \
        }                                                                                                              \
        nodedb_vamana__store_##sums(out, nodedb_vamana__##set##_totals_##sums(s0, s1, s2, s3));                        \
    }                                                                                                                  \
    target NODEDB_VAMANA__INLINE void nodedb_vamana__##set##_##name##_each(                                            \
        const query_type *q, const uint8_t *base, size_t stride, const uint32_t *slots, size_t count, size_t n,        \
        float *out) {                                                                                                  \
        size_t i;                                                                                                      \
        nodedb_vamana__prefetch_slots(base, stride, slots, 0, nodedb_vamana__min(NODEDB_VAMANA__AHEAD, count));        \
        for (i = 0; i + 4 <= count; i += 4) {                                                                          \
            nodedb_vamana__prefetch_slots(base, stride, slots, i + NODEDB_VAMANA__AHEAD,                               \
                                          nodedb_vamana__min(i + NODEDB_VAMANA__AHEAD + 4, count));                    \
            nodedb_vamana__##set##_##name##_four(                                                                      \
                q, (const vector_type *)nodedb_vamana__at(base, stride, slots, i),                                     \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 1),                                    \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 2),                                    \
                (const vector_type *)nodedb_vamana__at(base, stride, slots, i + 3), n, out + i);                       \
        }                                                                                                              \
        for (; i < count; i++)                                                                                         \
            out[i] = nodedb_vamana__##set##_##name(                                                                    \
                q, (const vector_type *)nodedb_vamana__at(base, stride, slots, i), n);                                 \
    }                                                                                                                  \
    target static void nodedb_vamana__##set##_##name##_many(const void *query, const uint8_t *base, size_t stride,     \
                                                            const uint32_t *slots, size_t count, size_t n,             \
                                                            float *out) {                                              \
        const query_type *q = (const query_type *)query;                                                               \
        if ((usual) != 0 && n == (usual))                                                                              \
            nodedb_vamana__##set##_##name##_each(q, base, stride, slots, count, (usual), out);                         \
        else nodedb_vamana__##set##_##name##_each(q, base, stride, slots, count, n, out);                              \
    }
#define NODEDB_VAMANA__ONES(target, set, sums, name, query_type, vector_type, width, per_item, usual)                  \
    NODEDB_VAMANA__ONE(target, set, sums, name, query_type, vector_type, width, per_item)                              \
    NODEDB_VAMANA__ONE_BY_ONE(set, name, query_type, vector_type)

/* All kernels of a set, made by FOURS or ONES. */
#define NODEDB_VAMANA__FLOAT_KERNELS(make, target, set, width)                                                         \
    make(target, set, f32, l2_f32, float, float, width, 1, 0)                                                          \
    make(target, set, f32, dot_f32, float, float, width, 1, 0)                                                         \
    make(target, set, f32, dot_f32_u8, float, uint8_t, width, 1, 0)
#define NODEDB_VAMANA__INTEGER_KERNELS(make, target, set, bytes_width, code4_width)                                    \
    make(target, set, u32, l2_u8, uint8_t, uint8_t, bytes_width, 1, 0)                                                 \
    make(target, set, u32, dot_u8, uint8_t, uint8_t, bytes_width, 1, 0)                                                \
    make(target, set, u32, l2_i8, int8_t, int8_t, bytes_width, 1, 0)                                                   \
    make(target, set, i32, dot_i8, int8_t, int8_t, bytes_width, 1, 0)                                                  \
    make(target, set, i32, dot_i8_u8, int8_t, uint8_t, bytes_width, 1, 0)                                              \
    make(target, set, i32, l2_code4, int8_t, uint8_t, code4_width, 2, 128)                                             \
    make(target, set, i32, dot_code4, int8_t, uint8_t, code4_width, 2, 128)

/* A step for the last components of vectors. It pads with zeros, which contribute nothing to any distance. */
#define NODEDB_VAMANA__PADDED_REST(inlined, set, sums, name, query_type, vector_type, width)                           \
    inlined nodedb_vamana__##set##_##sums nodedb_vamana__##set##_rest_##name(                                          \
        nodedb_vamana__##set##_##sums s, const query_type *q, const vector_type *v, size_t left) {                     \
        query_type x[width] = {0};                                                                                     \
        vector_type y[width] = {0};                                                                                    \
        memcpy(x, q, left * sizeof x[0]);                                                                              \
        memcpy(y, v, left * sizeof y[0]);                                                                              \
        return nodedb_vamana__##set##_step_##name(s, x, y);                                                            \
    }
/* For a step of one block of codes, of which there are only whole ones. */
#define NODEDB_VAMANA__NO_REST(inlined, set, name)                                                                     \
    inlined nodedb_vamana__##set##_i32 nodedb_vamana__##set##_rest_##name(                                             \
        nodedb_vamana__##set##_i32 s, const int8_t *q, const uint8_t *code, size_t left) {                             \
        (void)q, (void)code, (void)left;                                                                               \
        assert(left == 0);                                                                                             \
        return s;                                                                                                      \
    }
/* The pieces for floats, the same for every set but the plain one. A `vector` has `lanes` floats; the set has
 * multiply_add (a * b + c), load_part_f32 (of fewer floats, then zeros) and bytes_to_f32. */
#define NODEDB_VAMANA__FLOATS(inlined, set, vector, lanes, zero, load, subtract)                                       \
    typedef struct { vector a, b; } nodedb_vamana__##set##_f32; /* two chains, as one would wait for each addition */  \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_zero_f32(void) {                                         \
        nodedb_vamana__##set##_f32 s;                                                                                  \
        s.a = s.b = zero;                                                                                              \
        return s;                                                                                                      \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_add_l2_f32(vector s, vector x, vector y) {                                   \
        vector d = subtract(x, y);                                                                                     \
        return nodedb_vamana__##set##_multiply_add(d, d, s);                                                           \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_add_dot_f32(vector s, vector x, vector y) {                                  \
        return nodedb_vamana__##set##_multiply_add(x, y, s);                                                           \
    }                                                                                                                  \
    NODEDB_VAMANA__FLOAT_STEPS(inlined, set, l2_f32, lanes, load)                                                      \
    NODEDB_VAMANA__FLOAT_STEPS(inlined, set, dot_f32, lanes, load)                                                     \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_step_dot_f32_u8(nodedb_vamana__##set##_f32 s,            \
                                                                              const float *q, const uint8_t *v) {      \
        s.a = nodedb_vamana__##set##_multiply_add(load(q), nodedb_vamana__##set##_bytes_to_f32(v), s.a);               \
        s.b = nodedb_vamana__##set##_multiply_add(load(q + (lanes)), nodedb_vamana__##set##_bytes_to_f32(v + (lanes)), \
                                                  s.b);                                                                \
        return s;                                                                                                      \
    }                                                                                                                  \
    NODEDB_VAMANA__PADDED_REST(inlined, set, f32, dot_f32_u8, float, uint8_t, 2 * (lanes))
#define NODEDB_VAMANA__FLOAT_STEPS(inlined, set, name, lanes, load)                                                    \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_step_##name(nodedb_vamana__##set##_f32 s,                \
                                                                          const float *q, const float *v) {            \
        s.a = nodedb_vamana__##set##_add_##name(s.a, load(q), load(v));                                                \
        s.b = nodedb_vamana__##set##_add_##name(s.b, load(q + (lanes)), load(v + (lanes)));                            \
        return s;                                                                                                      \
    }                                                                                                                  \
    inlined nodedb_vamana__##set##_f32 nodedb_vamana__##set##_rest_##name(                                             \
        nodedb_vamana__##set##_f32 s, const float *q, const float *v, size_t left) {                                   \
        if (left >= (lanes)) {                                                                                         \
            s.a = nodedb_vamana__##set##_add_##name(s.a, load(q), load(v));                                            \
            q += (lanes), v += (lanes), left -= (lanes);                                                               \
        }                                                                                                              \
        if (left > 0)                                                                                                  \
            s.b = nodedb_vamana__##set##_add_##name(s.b, nodedb_vamana__##set##_load_part_f32(q, left),                \
                                                    nodedb_vamana__##set##_load_part_f32(v, left));                    \
        return s;                                                                                                      \
    }
#define NODEDB_VAMANA__ANY /* no target: what every CPU of the architecture has */
#endif

#if defined(NODEDB_VAMANA__X86)

/* ---- x86-64: SSE2, AVX2, AVX-512 --------------------------------------------------------------------------------- */

NODEDB_VAMANA__INLINE float nodedb_vamana__first_f32(__m128 v) { return _mm_cvtss_f32(v); }
NODEDB_VAMANA__INLINE float nodedb_vamana__first_i32(__m128i v) { return (float)_mm_cvtsi128_si32(v); }
NODEDB_VAMANA__INLINE float nodedb_vamana__first_u32(__m128i v) { return (float)(uint32_t)_mm_cvtsi128_si32(v); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_f32(float *out, __m128 v) { _mm_storeu_ps(out, v); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_i32(float *out, __m128i v) { _mm_storeu_ps(out, _mm_cvtepi32_ps(v)); }
NODEDB_VAMANA__INLINE void nodedb_vamana__store_u32(float *out, __m128i v) {
    __m128 high = _mm_cvtepi32_ps(_mm_srli_epi32(v, 16)); /* exact halves, so that rounding is done once, as in C */
    __m128 low = _mm_cvtepi32_ps(_mm_and_si128(v, _mm_set1_epi32(65535)));
    _mm_storeu_ps(out, _mm_add_ps(_mm_mul_ps(high, _mm_set1_ps(65536)), low));
}

/* The pieces for bytes. The bytes at even and at odd places become 16-bit numbers, by `u`: zeros above, or `i`: the
 * sign; those are multiplied and added in pairs. The set has load, load_part (of fewer bytes, then zeros), products
 * (a * b + c * d, added in pairs) and transpose (all lanes of each of four into one). */
#define NODEDB_VAMANA__X86_BYTES(inlined, set, vector, mm, si)                                                         \
    typedef vector nodedb_vamana__##set##_u32, nodedb_vamana__##set##_i32;                                             \
    inlined vector nodedb_vamana__##set##_zero_u32(void) { return mm##_setzero_##si(); }                               \
    inlined vector nodedb_vamana__##set##_zero_i32(void) { return mm##_setzero_##si(); }                               \
    inlined __m128i nodedb_vamana__##set##_totals_u32(vector s0, vector s1, vector s2, vector s3) {                    \
        return nodedb_vamana__##set##_transpose(s0, s1, s2, s3);                                                       \
    }                                                                                                                  \
    inlined __m128i nodedb_vamana__##set##_totals_i32(vector s0, vector s1, vector s2, vector s3) {                    \
        return nodedb_vamana__##set##_transpose(s0, s1, s2, s3);                                                       \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_even_u(vector x) { return mm##_and_##si(x, mm##_set1_epi16(255)); }          \
    inlined vector nodedb_vamana__##set##_odd_u(vector x) { return mm##_srli_epi16(x, 8); }                            \
    inlined vector nodedb_vamana__##set##_even_i(vector x) { return mm##_srai_epi16(mm##_slli_epi16(x, 8), 8); }       \
    inlined vector nodedb_vamana__##set##_odd_i(vector x) { return mm##_srai_epi16(x, 8); }                            \
    inlined vector nodedb_vamana__##set##_squares(vector a, vector b, vector c, vector d) {                            \
        vector ab = mm##_sub_epi16(a, b), cd = mm##_sub_epi16(c, d);                                                   \
        return nodedb_vamana__##set##_products(ab, ab, cd, cd);                                                        \
    }                                                                                                                  \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, l2_u8, squares, uint8_t, u, uint8_t, u)                    \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, dot_u8, products, uint8_t, u, uint8_t, u)                  \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, l2_i8, squares, int8_t, i, int8_t, i)                      \
    NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, dot_i8, products, int8_t, i, int8_t, i)
#define NODEDB_VAMANA__X86_BYTE_STEPS(inlined, set, vector, mm, name, terms, query_type, q_is, vector_type, v_is)      \
    inlined vector nodedb_vamana__##set##_add_##name(vector s, vector x, vector y) {                                   \
        return mm##_add_epi32(s, nodedb_vamana__##set##_##terms(                                                       \
                                     nodedb_vamana__##set##_even_##q_is(x), nodedb_vamana__##set##_even_##v_is(y),     \
                                     nodedb_vamana__##set##_odd_##q_is(x), nodedb_vamana__##set##_odd_##v_is(y)));     \
    }                                                                                                                  \
    NODEDB_VAMANA__X86_LOADS(inlined, set, vector, name, query_type, vector_type)
#define NODEDB_VAMANA__X86_LOADS(inlined, set, vector, name, query_type, vector_type)                                  \
    inlined vector nodedb_vamana__##set##_step_##name(vector s, const query_type *q, const vector_type *v) {           \
        return nodedb_vamana__##set##_add_##name(s, nodedb_vamana__##set##_load(q), nodedb_vamana__##set##_load(v));   \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_rest_##name(vector s, const query_type *q, const vector_type *v,             \
                                                      size_t left) {                                                   \
        return nodedb_vamana__##set##_add_##name(s, nodedb_vamana__##set##_load_part(q, left),                         \
                                                 nodedb_vamana__##set##_load_part(v, left));                           \
    }

/* A vector's worth of 4-bit codes against the query's bytes for their low and high halves: 16-bit sums of four
 * components each. The codes are the unsigned side of maddubs, the query or 4 c (at most 60) the signed one. A term of
 * dot lies within -1,920 .. 1,905, one of l2 within -1,005 .. 2,820; eight fit into 16 bits. */
#define NODEDB_VAMANA__X86_NIBBLES(inlined, set, vector, mm, si)                                                       \
    inlined vector nodedb_vamana__##set##_low(vector c) { return mm##_and_##si(c, mm##_set1_epi8(15)); }               \
    inlined vector nodedb_vamana__##set##_high(vector c) {                                                             \
        return mm##_and_##si(mm##_srli_epi16(c, 4), mm##_set1_epi8(15));                                               \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_fours_dot_code4(vector c, vector q_low, vector q_high) {                     \
        return mm##_add_epi16(mm##_maddubs_epi16(nodedb_vamana__##set##_low(c), q_low),                                \
                              mm##_maddubs_epi16(nodedb_vamana__##set##_high(c), q_high));                             \
    }                                                                                                                  \
    inlined vector nodedb_vamana__##set##_fours_l2_code4(vector c, vector q_low, vector q_high) {                      \
        vector low = nodedb_vamana__##set##_low(c), high = nodedb_vamana__##set##_high(c);                             \
        return mm##_sub_epi16(nodedb_vamana__##set##_fours_dot_code4(c, mm##_slli_epi16(low, 2),                       \
                                                                     mm##_slli_epi16(high, 2)),                        \
                              nodedb_vamana__##set##_fours_dot_code4(c, q_low, q_high));                               \
    }

/* SSE2: every x86-64. */
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_multiply_add(__m128 a, __m128 b, __m128 c) {
    return _mm_add_ps(_mm_mul_ps(a, b), c);
}
static __m128 nodedb_vamana__sse2_load_part_f32(const float *p, size_t count) {
    float part[4] = {0, 0, 0, 0};
    memcpy(part, p, count * sizeof *p);
    return _mm_loadu_ps(part);
}
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_bytes_to_f32(const uint8_t *p) {
    __m128i zero = _mm_setzero_si128();
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero));
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
static __m128i nodedb_vamana__sse2_load_part(const void *p, size_t bytes) {
    uint8_t part[16] = {0};
    memcpy(part, p, bytes);
    return nodedb_vamana__sse2_load(part);
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_products(__m128i a, __m128i b, __m128i c, __m128i d) {
    return _mm_add_epi32(_mm_madd_epi16(a, b), _mm_madd_epi16(c, d));
}
/* Four numbers of each into one: (a0 + a2) + (a1 + a3), and so on. */
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_transpose_f32(__m128 a, __m128 b, __m128 c, __m128 d) {
    __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_transpose(__m128i a, __m128i b, __m128i c, __m128i d) {
    __m128i ab = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    __m128i cd = _mm_add_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    return _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__INLINE, sse2, __m128, 4, _mm_setzero_ps(), _mm_loadu_ps, _mm_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__INLINE, sse2, __m128i, _mm, si128)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__INLINE, sse2, __m128i, _mm, dot_i8_u8, products, int8_t, i, uint8_t, u)
NODEDB_VAMANA__INLINE __m128 nodedb_vamana__sse2_totals_f32(nodedb_vamana__sse2_f32 s0, nodedb_vamana__sse2_f32 s1,
                                                            nodedb_vamana__sse2_f32 s2, nodedb_vamana__sse2_f32 s3) {
    return nodedb_vamana__sse2_transpose_f32(_mm_add_ps(s0.a, s0.b), _mm_add_ps(s1.a, s1.b), _mm_add_ps(s2.a, s2.b),
                                             _mm_add_ps(s3.a, s3.b));
}
/* SSE2 has no maddubs: the codes become 16-bit numbers, for which c (4 c - q) is one product. */
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_dot_terms(__m128i c, __m128i q) { return _mm_madd_epi16(c, q); }
NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_l2_terms(__m128i c, __m128i q) {
    return _mm_madd_epi16(c, _mm_sub_epi16(_mm_slli_epi16(c, 2), q));
}
#define NODEDB_VAMANA__SSE2_CODE4(name, terms)                                                                         \
    NODEDB_VAMANA__INLINE __m128i nodedb_vamana__sse2_step_##name(__m128i s, const int8_t *q, const uint8_t *code) {   \
        const __m128i nibble = _mm_set1_epi16(15);                                                                     \
        size_t i;                                                                                                      \
        for (i = 0; i < 32; i += 16) {                                                                                 \
            __m128i c = nodedb_vamana__sse2_load(code + i);                                                            \
            __m128i low = nodedb_vamana__sse2_load(q + i), high = nodedb_vamana__sse2_load(q + 32 + i);                \
            s = _mm_add_epi32(s, terms(_mm_and_si128(c, nibble), nodedb_vamana__sse2_even_i(low)));                    \
            s = _mm_add_epi32(s, terms(_mm_and_si128(_mm_srli_epi16(c, 8), nibble), nodedb_vamana__sse2_odd_i(low)));  \
            s = _mm_add_epi32(s, terms(_mm_and_si128(_mm_srli_epi16(c, 4), nibble), nodedb_vamana__sse2_even_i(high)));\
            s = _mm_add_epi32(s, terms(_mm_srli_epi16(c, 12), nodedb_vamana__sse2_odd_i(high)));                       \
        }                                                                                                              \
        return s;                                                                                                      \
    }                                                                                                                  \
    NODEDB_VAMANA__NO_REST(NODEDB_VAMANA__INLINE, sse2, name)
NODEDB_VAMANA__SSE2_CODE4(l2_code4, nodedb_vamana__sse2_l2_terms)
NODEDB_VAMANA__SSE2_CODE4(dot_code4, nodedb_vamana__sse2_dot_terms)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__ONES, NODEDB_VAMANA__ANY, sse2, 8)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__ONES, NODEDB_VAMANA__ANY, sse2, 16, 64)
NODEDB_VAMANA__SET(sse2, sse2, plain)

/* AVX2 and FMA: x86-64-v3. */
#define NODEDB_VAMANA__AVX2 NODEDB_VAMANA__TARGET("avx2,fma")
#define NODEDB_VAMANA__AVX2_INLINE NODEDB_VAMANA__AVX2 NODEDB_VAMANA__INLINE
#define NODEDB_VAMANA__AVX2_ONLY_INLINE NODEDB_VAMANA__TARGET("avx2") NODEDB_VAMANA__INLINE /* for AVX-512 to use */
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_multiply_add(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
/* A mask for the first 0 .. 8 of eight lanes. */
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_first_lanes(size_t count) {
    static const int32_t masks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return nodedb_vamana__avx2_load(masks + 8 - count);
}
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_load_part_f32(const float *p, size_t count) {
    return _mm256_maskload_ps(p, nodedb_vamana__avx2_first_lanes(count));
}
NODEDB_VAMANA__AVX2 static __m256i nodedb_vamana__avx2_load_odd_part(const void *p, size_t bytes) {
    uint8_t part[32] = {0};
    memcpy(part, p, bytes);
    return nodedb_vamana__avx2_load(part);
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_load_part(const void *p, size_t bytes) {
    if (bytes % 4 != 0) return nodedb_vamana__avx2_load_odd_part(p, bytes); /* there are masks for fours only */
    return _mm256_maskload_epi32((const int *)p, nodedb_vamana__avx2_first_lanes(bytes / 4));
}
NODEDB_VAMANA__AVX2_INLINE __m256 nodedb_vamana__avx2_bytes_to_f32(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_products(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_add_epi32(_mm256_madd_epi16(a, b), _mm256_madd_epi16(c, d));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128 nodedb_vamana__avx2_half_f32(__m256 v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128i nodedb_vamana__avx2_half(__m256i v) {
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128 nodedb_vamana__avx2_transpose_f32(__m256 a, __m256 b, __m256 c, __m256 d) {
    return nodedb_vamana__sse2_transpose_f32(nodedb_vamana__avx2_half_f32(a), nodedb_vamana__avx2_half_f32(b),
                                             nodedb_vamana__avx2_half_f32(c), nodedb_vamana__avx2_half_f32(d));
}
NODEDB_VAMANA__AVX2_ONLY_INLINE __m128i nodedb_vamana__avx2_transpose(__m256i a, __m256i b, __m256i c, __m256i d) {
    return nodedb_vamana__sse2_transpose(nodedb_vamana__avx2_half(a), nodedb_vamana__avx2_half(b),
                                         nodedb_vamana__avx2_half(c), nodedb_vamana__avx2_half(d));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, si256)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, dot_i8_u8, products, int8_t, i,
                              uint8_t, u)
NODEDB_VAMANA__X86_NIBBLES(NODEDB_VAMANA__AVX2_INLINE, avx2, __m256i, _mm256, si256)
NODEDB_VAMANA__AVX2_INLINE __m128 nodedb_vamana__avx2_totals_f32(nodedb_vamana__avx2_f32 s0, nodedb_vamana__avx2_f32 s1,
                                                                 nodedb_vamana__avx2_f32 s2,
                                                                 nodedb_vamana__avx2_f32 s3) {
    return nodedb_vamana__avx2_transpose_f32(_mm256_add_ps(s0.a, s0.b), _mm256_add_ps(s1.a, s1.b),
                                             _mm256_add_ps(s2.a, s2.b), _mm256_add_ps(s3.a, s3.b));
}
/* A step of two blocks, added up in 16 bits: eight terms. */
#define NODEDB_VAMANA__AVX2_CODE4(name)                                                                                \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_block_##name(const int8_t *q, const uint8_t *code) {        \
        return nodedb_vamana__avx2_fours_##name(nodedb_vamana__avx2_load(code), nodedb_vamana__avx2_load(q),           \
                                                nodedb_vamana__avx2_load(q + 32));                                     \
    }                                                                                                                  \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_step_##name(__m256i s, const int8_t *q,                     \
                                                                       const uint8_t *code) {                          \
        __m256i eights = _mm256_add_epi16(nodedb_vamana__avx2_block_##name(q, code),                                   \
                                          nodedb_vamana__avx2_block_##name(q + 64, code + 32));                        \
        return _mm256_add_epi32(s, _mm256_madd_epi16(eights, _mm256_set1_epi16(1)));                                   \
    }                                                                                                                  \
    NODEDB_VAMANA__AVX2_INLINE __m256i nodedb_vamana__avx2_rest_##name(__m256i s, const int8_t *q,                     \
                                                                       const uint8_t *code, size_t left) {             \
        (void)left;                                                                                                    \
        assert(left == NODEDB_VAMANA__CODE4_BLOCK);                                                                    \
        return _mm256_add_epi32(                                                                                       \
            s, _mm256_madd_epi16(nodedb_vamana__avx2_block_##name(q, code), _mm256_set1_epi16(1)));                    \
    }
NODEDB_VAMANA__AVX2_CODE4(l2_code4)
NODEDB_VAMANA__AVX2_CODE4(dot_code4)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX2, avx2, 16)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX2, avx2, 32, 128)

/* Flips the signs of eight components, one for each of the lower bits, and adds up those that are 1, 2 and 4 apart:
 * `others` has each component's partner, whose upper one is to be the difference. */
NODEDB_VAMANA__TARGET("avx2") NODEDB_VAMANA__INLINE __m256 nodedb_vamana__avx2_turn_eight(__m256 x, uint32_t bits) {
    __m256i lanes = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24), top = _mm256_set1_epi32(INT32_MIN);
    __m256i signs = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32((int32_t)bits), lanes), top);
    __m256 others;
    x = _mm256_castsi256_ps(_mm256_xor_si256(_mm256_castps_si256(x), signs));
    others = _mm256_permute_ps(x, 0xB1);
    x = _mm256_blend_ps(_mm256_add_ps(x, others), _mm256_sub_ps(others, x), 0xAA);
    others = _mm256_permute_ps(x, 0x4E);
    x = _mm256_blend_ps(_mm256_add_ps(x, others), _mm256_sub_ps(others, x), 0xCC);
    others = _mm256_permute2f128_ps(x, x, 1);
    return _mm256_blend_ps(_mm256_add_ps(x, others), _mm256_sub_ps(others, x), 0xF0);
}
/* For 384 components in 1 us and not 4, which was a tenth of a query. */
NODEDB_VAMANA__TARGET("avx2") static void nodedb_vamana__avx2_turn_part(float *x, uint32_t n, uint64_t key) {
    __m256 scale = _mm256_set1_ps(1 / sqrtf((float)n));
    uint64_t signs = 0;
    if (n < 8) {
        nodedb_vamana__plain_turn_part(x, n, key);
        return;
    }
    for (uint32_t i = 0; i < n; i += 8) {
        signs = i % 64 == 0 ? nodedb_vamana__signs(key, i) : signs >> 8;
        _mm256_storeu_ps(x + i, nodedb_vamana__avx2_turn_eight(_mm256_loadu_ps(x + i), (uint32_t)signs));
    }
    for (uint32_t half = 8; half < n; half *= 2)
        for (uint32_t i = 0; i < n; i += 2 * half)
            for (uint32_t j = i; j < i + half; j += 8) {
                __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + half);
                _mm256_storeu_ps(x + j, _mm256_add_ps(a, b));
                _mm256_storeu_ps(x + j + half, _mm256_sub_ps(a, b));
            }
    for (uint32_t i = 0; i < n; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
}

NODEDB_VAMANA__SET(avx2, avx2, avx2)

/* AVX-512 F and BW: parts of vectors are loaded under a mask. */
#define NODEDB_VAMANA__AVX512 NODEDB_VAMANA__TARGET("avx512f,avx512bw")
#define NODEDB_VAMANA__AVX512_INLINE NODEDB_VAMANA__AVX512 NODEDB_VAMANA__INLINE
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_multiply_add(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_load_part_f32(const float *p, size_t count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
NODEDB_VAMANA__AVX512_INLINE __m512 nodedb_vamana__avx512_bytes_to_f32(const uint8_t *p) {
    /* masked: gcc 12 as C++ warns of uninitialised variables in its own unmasked ones; so are others below */
    return _mm512_maskz_cvtepi32_ps(
        0xFFFF, _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_load(const void *p) { return _mm512_loadu_si512(p); }
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_load_part(const void *p, size_t bytes) {
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << bytes) - 1, p);
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_products(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_add_epi32(_mm512_madd_epi16(a, b), _mm512_madd_epi16(c, d));
}
NODEDB_VAMANA__AVX512_INLINE __m256i nodedb_vamana__avx512_half(__m512i v) {
    return _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xF, v, 0), _mm512_maskz_extracti64x4_epi64(0xF, v, 1));
}
NODEDB_VAMANA__AVX512_INLINE __m128i nodedb_vamana__avx512_transpose(__m512i a, __m512i b, __m512i c, __m512i d) {
    return nodedb_vamana__avx2_transpose(nodedb_vamana__avx512_half(a), nodedb_vamana__avx512_half(b),
                                         nodedb_vamana__avx512_half(c), nodedb_vamana__avx512_half(d));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps,
                      _mm512_sub_ps)
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, si512)
NODEDB_VAMANA__X86_BYTE_STEPS(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, dot_i8_u8, products, int8_t, i,
                              uint8_t, u)
NODEDB_VAMANA__X86_NIBBLES(NODEDB_VAMANA__AVX512_INLINE, avx512, __m512i, _mm512, si512)
NODEDB_VAMANA__AVX512_INLINE __m256 nodedb_vamana__avx512_half_f32(nodedb_vamana__avx512_f32 s) {
    __m512d v = _mm512_castps_pd(_mm512_add_ps(s.a, s.b));
    return _mm256_add_ps(_mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, v, 0)),
                         _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xF, v, 1)));
}
NODEDB_VAMANA__AVX512_INLINE __m128 nodedb_vamana__avx512_totals_f32(
    nodedb_vamana__avx512_f32 s0, nodedb_vamana__avx512_f32 s1, nodedb_vamana__avx512_f32 s2,
    nodedb_vamana__avx512_f32 s3) {
    return nodedb_vamana__avx2_transpose_f32(nodedb_vamana__avx512_half_f32(s0), nodedb_vamana__avx512_half_f32(s1),
                                             nodedb_vamana__avx512_half_f32(s2), nodedb_vamana__avx512_half_f32(s3));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_add_l2_code4(__m512i s, __m512i c, __m512i q_low,
                                                                        __m512i q_high) {
    __m512i fours = nodedb_vamana__avx512_fours_l2_code4(c, q_low, q_high);
    return _mm512_add_epi32(s, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)));
}
NODEDB_VAMANA__AVX512_INLINE __m512i nodedb_vamana__avx512_add_dot_code4(__m512i s, __m512i c, __m512i q_low,
                                                                         __m512i q_high) {
    __m512i fours = nodedb_vamana__avx512_fours_dot_code4(c, q_low, q_high);
    return _mm512_add_epi32(s, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)));
}
/* A vector is two blocks of a code. The lower halves of the query's two blocks meet its low nibbles. */
#define NODEDB_VAMANA__AVX512_CODE4(inlined, set, name)                                                                \
    inlined __m512i nodedb_vamana__##set##_blocks_##name(__m512i s, __m512i c, __m512i q0, __m512i q1) {               \
        return nodedb_vamana__##set##_add_##name(s, c, _mm512_maskz_shuffle_i64x2(0xFF, q0, q1, 0x44),                 \
                                                 _mm512_maskz_shuffle_i64x2(0xFF, q0, q1, 0xEE));                      \
    }                                                                                                                  \
    inlined __m512i nodedb_vamana__##set##_step_##name(__m512i s, const int8_t *q, const uint8_t *code) {              \
        return nodedb_vamana__##set##_blocks_##name(s, nodedb_vamana__avx512_load(code),                               \
                                                    nodedb_vamana__avx512_load(q),                                     \
                                                    nodedb_vamana__avx512_load(q + 64));                               \
    }                                                                                                                  \
    inlined __m512i nodedb_vamana__##set##_rest_##name(__m512i s, const int8_t *q, const uint8_t *code,                \
                                                       size_t left) {                                                  \
        assert(left == NODEDB_VAMANA__CODE4_BLOCK);                                                                    \
        return nodedb_vamana__##set##_blocks_##name(s, nodedb_vamana__avx512_load_part(code, left / 2),                \
                                                    nodedb_vamana__avx512_load(q), _mm512_setzero_si512());            \
    }
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__AVX512_INLINE, avx512, l2_code4)
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__AVX512_INLINE, avx512, dot_code4)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX512, avx512, 32)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__AVX512, avx512, 64, 128)
NODEDB_VAMANA__SET(avx512, avx512, avx2)

/* AVX-512 VNNI: multiplies, adds in pairs or in fours, and accumulates, in one instruction. Its form for bytes takes
 * one unsigned and one signed side, so it is for codes; all others take the one for 16 bits. */
#define NODEDB_VAMANA__VNNI NODEDB_VAMANA__TARGET("avx512f,avx512bw,avx512vnni")
#define NODEDB_VAMANA__VNNI_INLINE NODEDB_VAMANA__VNNI NODEDB_VAMANA__INLINE
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_load(const void *p) { return _mm512_loadu_si512(p); }
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_load_part(const void *p, size_t bytes) {
    return nodedb_vamana__avx512_load_part(p, bytes);
}
NODEDB_VAMANA__VNNI_INLINE __m128i nodedb_vamana__avx512vnni_transpose(__m512i a, __m512i b, __m512i c, __m512i d) {
    return nodedb_vamana__avx512_transpose(a, b, c, d);
}
/* Not onto the running sum, which would then wait for each multiplication. */
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_products(__m512i a, __m512i b, __m512i c, __m512i d) {
    return _mm512_dpwssd_epi32(_mm512_madd_epi16(a, b), c, d);
}
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_dot_i8_u8(__m512i s, __m512i q, __m512i c) {
    return _mm512_dpbusd_epi32(s, c, q);
}
NODEDB_VAMANA__X86_BYTES(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, __m512i, _mm512, si512)
NODEDB_VAMANA__X86_LOADS(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, __m512i, dot_i8_u8, int8_t, uint8_t)
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_dot_code4(__m512i s, __m512i c, __m512i q_low,
                                                                           __m512i q_high) {
    s = _mm512_dpbusd_epi32(s, nodedb_vamana__avx512_low(c), q_low);
    return _mm512_dpbusd_epi32(s, nodedb_vamana__avx512_high(c), q_high);
}
NODEDB_VAMANA__VNNI_INLINE __m512i nodedb_vamana__avx512vnni_add_l2_code4(__m512i s, __m512i c, __m512i q_low,
                                                                          __m512i q_high) {
    __m512i low = nodedb_vamana__avx512_low(c), high = nodedb_vamana__avx512_high(c), none = _mm512_setzero_si512();
    s = nodedb_vamana__avx512vnni_add_dot_code4(s, c, _mm512_slli_epi16(low, 2), _mm512_slli_epi16(high, 2));
    return _mm512_sub_epi32(s, nodedb_vamana__avx512vnni_add_dot_code4(none, c, q_low, q_high));
}
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, l2_code4)
NODEDB_VAMANA__AVX512_CODE4(NODEDB_VAMANA__VNNI_INLINE, avx512vnni, dot_code4)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__VNNI, avx512vnni, 64, 128)
NODEDB_VAMANA__SET(avx512vnni, avx512, avx2)
#endif /* NODEDB_VAMANA__X86 */

#if defined(NODEDB_VAMANA__NEON)

/* ---- aarch64: NEON, and NEON with the dot product ---------------------------------------------------------------- */

static inline float nodedb_vamana__first_f32(float32x4_t v) { return vgetq_lane_f32(v, 0); }
static inline float nodedb_vamana__first_i32(int32x4_t v) { return (float)vgetq_lane_s32(v, 0); }
static inline float nodedb_vamana__first_u32(uint32x4_t v) { return (float)vgetq_lane_u32(v, 0); }
static inline void nodedb_vamana__store_f32(float *out, float32x4_t v) { vst1q_f32(out, v); }
static inline void nodedb_vamana__store_i32(float *out, int32x4_t v) { vst1q_f32(out, vcvtq_f32_s32(v)); }
static inline void nodedb_vamana__store_u32(float *out, uint32x4_t v) { vst1q_f32(out, vcvtq_f32_u32(v)); }

NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vfmaq_f32(c, a, b);
}
static float32x4_t nodedb_vamana__neon_load_part_f32(const float *p, size_t count) {
    float part[4] = {0, 0, 0, 0};
    memcpy(part, p, count * sizeof *p);
    return vld1q_f32(part);
}
NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_bytes_to_f32(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
NODEDB_VAMANA__FLOATS(NODEDB_VAMANA__INLINE, neon, float32x4_t, 4, vdupq_n_f32(0), vld1q_f32, vsubq_f32)
NODEDB_VAMANA__INLINE float32x4_t nodedb_vamana__neon_totals_f32(nodedb_vamana__neon_f32 s0, nodedb_vamana__neon_f32 s1,
                                                                 nodedb_vamana__neon_f32 s2,
                                                                 nodedb_vamana__neon_f32 s3) {
    return vpaddq_f32(vpaddq_f32(vaddq_f32(s0.a, s0.b), vaddq_f32(s1.a, s1.b)),
                      vpaddq_f32(vaddq_f32(s2.a, s2.b), vaddq_f32(s3.a, s3.b)));
}

/* The pieces for integers. A set has add_u8, add_i8 and add_i8_u8, which add the products of 16 bytes, and add_l2_code4
 * and add_dot_code4, which take 16 bytes of a code and the query's bytes for its low and for its high nibbles. */
#define NODEDB_VAMANA__NEON_INTEGERS(inlined, set)                                                                     \
    typedef uint32x4_t nodedb_vamana__##set##_u32;                                                                     \
    typedef int32x4_t nodedb_vamana__##set##_i32;                                                                      \
    inlined uint32x4_t nodedb_vamana__##set##_zero_u32(void) { return vdupq_n_u32(0); }                                \
    inlined int32x4_t nodedb_vamana__##set##_zero_i32(void) { return vdupq_n_s32(0); }                                 \
    inlined uint32x4_t nodedb_vamana__##set##_step_l2_u8(uint32x4_t s, const uint8_t *q, const uint8_t *v) {           \
        uint8x16_t d = vabdq_u8(vld1q_u8(q), vld1q_u8(v));                                                             \
        return nodedb_vamana__##set##_add_u8(s, d, d);                                                                 \
    }                                                                                                                  \
    inlined uint32x4_t nodedb_vamana__##set##_step_dot_u8(uint32x4_t s, const uint8_t *q, const uint8_t *v) {          \
        return nodedb_vamana__##set##_add_u8(s, vld1q_u8(q), vld1q_u8(v));                                             \
    }                                                                                                                  \
    inlined uint32x4_t nodedb_vamana__##set##_step_l2_i8(uint32x4_t s, const int8_t *q, const int8_t *v) {             \
        uint8x16_t d = vreinterpretq_u8_s8(vabdq_s8(vld1q_s8(q), vld1q_s8(v))); /* up to 255 */                        \
        return nodedb_vamana__##set##_add_u8(s, d, d);                                                                 \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_dot_i8(int32x4_t s, const int8_t *q, const int8_t *v) {              \
        return nodedb_vamana__##set##_add_i8(s, vld1q_s8(q), vld1q_s8(v));                                             \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_dot_i8_u8(int32x4_t s, const int8_t *q, const uint8_t *v) {          \
        return nodedb_vamana__##set##_add_i8_u8(s, vld1q_s8(q), vld1q_u8(v));                                          \
    }                                                                                                                  \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, l2_u8, uint8_t, uint8_t, 16)                                         \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, dot_u8, uint8_t, uint8_t, 16)                                        \
    NODEDB_VAMANA__PADDED_REST(inlined, set, u32, l2_i8, int8_t, int8_t, 16)                                           \
    NODEDB_VAMANA__PADDED_REST(inlined, set, i32, dot_i8, int8_t, int8_t, 16)                                          \
    NODEDB_VAMANA__PADDED_REST(inlined, set, i32, dot_i8_u8, int8_t, uint8_t, 16)                                      \
    NODEDB_VAMANA__NEON_CODE4(inlined, set, l2_code4)                                                                  \
    NODEDB_VAMANA__NEON_CODE4(inlined, set, dot_code4)                                                                 \
    inlined uint32x4_t nodedb_vamana__##set##_totals_u32(uint32x4_t s0, uint32x4_t s1, uint32x4_t s2,                  \
                                                         uint32x4_t s3) {                                              \
        return vpaddq_u32(vpaddq_u32(s0, s1), vpaddq_u32(s2, s3));                                                     \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_totals_i32(int32x4_t s0, int32x4_t s1, int32x4_t s2, int32x4_t s3) {      \
        return vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));                                                     \
    }
#define NODEDB_VAMANA__NEON_CODE4(inlined, set, name)                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_half_##name(int32x4_t s, const int8_t *q, const uint8_t *code) {          \
        uint8x16_t c = vld1q_u8(code);                                                                                 \
        return nodedb_vamana__##set##_add_##name(s, vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))),                  \
                                                 vreinterpretq_s8_u8(vshrq_n_u8(c, 4)), vld1q_s8(q),                   \
                                                 vld1q_s8(q + 32));                                                    \
    }                                                                                                                  \
    inlined int32x4_t nodedb_vamana__##set##_step_##name(int32x4_t s, const int8_t *q, const uint8_t *code) {          \
        s = nodedb_vamana__##set##_half_##name(s, q, code);                                                            \
        return nodedb_vamana__##set##_half_##name(s, q + 16, code + 16);                                               \
    }                                                                                                                  \
    NODEDB_VAMANA__NO_REST(inlined, set, name)

/* NEON: every aarch64. */
NODEDB_VAMANA__INLINE uint32x4_t nodedb_vamana__neon_add_u8(uint32x4_t s, uint8x16_t x, uint8x16_t y) {
    s = vpadalq_u16(s, vmull_u8(vget_low_u8(x), vget_low_u8(y)));
    return vpadalq_u16(s, vmull_high_u8(x, y));
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_i8(int32x4_t s, int8x16_t x, int8x16_t y) {
    s = vpadalq_s16(s, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    return vpadalq_s16(s, vmull_high_s8(x, y));
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_i8_u8(int32x4_t s, int8x16_t x, uint8x16_t y) {
    int16x8_t x0 = vmovl_s8(vget_low_s8(x)), x1 = vmovl_high_s8(x);
    int16x8_t y0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(y))), y1 = vreinterpretq_s16_u16(vmovl_high_u8(y));
    s = vmlal_high_s16(vmlal_s16(s, vget_low_s16(x0), vget_low_s16(y0)), x0, y0);
    return vmlal_high_s16(vmlal_s16(s, vget_low_s16(x1), vget_low_s16(y1)), x1, y1);
}
/* In 16 bits: two terms to a lane, and each is below 2,821. */
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_dot_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                  int8x16_t q_low, int8x16_t q_high) {
    int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(q_low)), vget_low_s8(high), vget_low_s8(q_high));
    int16x8_t second = vmlal_high_s8(vmull_high_s8(low, q_low), high, q_high);
    return vpadalq_s16(vpadalq_s16(s, first), second);
}
NODEDB_VAMANA__INLINE int32x4_t nodedb_vamana__neon_add_l2_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                 int8x16_t q_low, int8x16_t q_high) {
    int8x16_t low4 = vshlq_n_s8(low, 2), high4 = vshlq_n_s8(high, 2);
    int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(low4)), vget_low_s8(high), vget_low_s8(high4));
    int16x8_t second = vmlal_high_s8(vmull_high_s8(low, low4), high, high4);
    first = vmlsl_s8(vmlsl_s8(first, vget_low_s8(low), vget_low_s8(q_low)), vget_low_s8(high), vget_low_s8(q_high));
    second = vmlsl_high_s8(vmlsl_high_s8(second, low, q_low), high, q_high);
    return vpadalq_s16(vpadalq_s16(s, first), second);
}
NODEDB_VAMANA__NEON_INTEGERS(NODEDB_VAMANA__INLINE, neon)
NODEDB_VAMANA__FLOAT_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__ANY, neon, 8)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__ANY, neon, 16, 64)
NODEDB_VAMANA__SET(neon, neon, plain)

/* NEON with the dot product: armv8.2-a with an option, armv8.4-a. By assembler, as not every compiler's arm_neon.h has
 * these instructions unless the whole file is compiled for them. gcc's target says all that there is, not what is
 * added, and what it is made to inline there must not have been compiled for more (-march=armv8-a+crypto): so the
 * helpers that all sets share are merely `inline`. */
#if defined(__ARM_FEATURE_DOTPROD)
#define NODEDB_VAMANA__NEONDOT
#elif defined(__clang__)
#define NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__TARGET("dotprod")
#else
#define NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__TARGET("arch=armv8.2-a+dotprod")
#endif
#define NODEDB_VAMANA__NEONDOT_INLINE NODEDB_VAMANA__NEONDOT NODEDB_VAMANA__INLINE
NODEDB_VAMANA__NEONDOT_INLINE uint32x4_t nodedb_vamana__neondot_add_u8(uint32x4_t s, uint8x16_t x, uint8x16_t y) {
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(x), "w"(y));
    return s;
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_i8(int32x4_t s, int8x16_t x, int8x16_t y) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(x), "w"(y));
    return s;
}
/* x y = x (y - 128) + 64 x + 64 x, in which all are signed bytes. */
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_i8_u8(int32x4_t s, int8x16_t x, uint8x16_t y) {
    int32x4_t offset = nodedb_vamana__neondot_add_i8(vdupq_n_s32(0), x, vdupq_n_s8(64));
    s = nodedb_vamana__neondot_add_i8(s, x, vreinterpretq_s8_u8(veorq_u8(y, vdupq_n_u8(128))));
    return vaddq_s32(s, vaddq_s32(offset, offset));
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_dot_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                             int8x16_t q_low, int8x16_t q_high) {
    return nodedb_vamana__neondot_add_i8(nodedb_vamana__neondot_add_i8(s, low, q_low), high, q_high);
}
NODEDB_VAMANA__NEONDOT_INLINE int32x4_t nodedb_vamana__neondot_add_l2_code4(int32x4_t s, int8x16_t low, int8x16_t high,
                                                                            int8x16_t q_low, int8x16_t q_high) {
    s = nodedb_vamana__neondot_add_dot_code4(s, low, high, vshlq_n_s8(low, 2), vshlq_n_s8(high, 2));
    return vsubq_s32(s, nodedb_vamana__neondot_add_dot_code4(vdupq_n_s32(0), low, high, q_low, q_high));
}
NODEDB_VAMANA__NEON_INTEGERS(NODEDB_VAMANA__NEONDOT_INLINE, neondot)
NODEDB_VAMANA__INTEGER_KERNELS(NODEDB_VAMANA__FOURS, NODEDB_VAMANA__NEONDOT, neondot, 16, 64)
NODEDB_VAMANA__SET(neondot, neon, plain)
#endif /* NODEDB_VAMANA__NEON */

/* ---- choosing a set ---------------------------------------------------------------------------------------------- */

static const nodedb_vamana__kernel_set *const nodedb_vamana__sets[] = {
    &nodedb_vamana__set_plain,
#if defined(NODEDB_VAMANA__X86)
    &nodedb_vamana__set_sse2, &nodedb_vamana__set_avx2, &nodedb_vamana__set_avx512, &nodedb_vamana__set_avx512vnni,
#endif
#if defined(NODEDB_VAMANA__NEON)
    &nodedb_vamana__set_neon, &nodedb_vamana__set_neondot,
#endif
    NULL};

NODEDB_VAMANA_API const nodedb_vamana_kernels *nodedb_vamana_kernels_at(size_t i) {
    if (i >= sizeof nodedb_vamana__sets / sizeof nodedb_vamana__sets[0] || nodedb_vamana__sets[i] == NULL) return NULL;
    return &nodedb_vamana__sets[i]->one;
}

NODEDB_VAMANA_API bool nodedb_vamana_kernels_usable(const nodedb_vamana_kernels *kernels) {
    if (kernels == NULL) return false;
#if defined(NODEDB_VAMANA__X86)
    if (kernels == &nodedb_vamana__set_avx2.one) return NODEDB_VAMANA__CPU_HAS("avx2") && NODEDB_VAMANA__CPU_HAS("fma");
    if (kernels == &nodedb_vamana__set_avx512.one || kernels == &nodedb_vamana__set_avx512vnni.one) {
        if (!NODEDB_VAMANA__CPU_HAS("avx512f") || !NODEDB_VAMANA__CPU_HAS("avx512bw")) return false;
        return kernels == &nodedb_vamana__set_avx512.one || NODEDB_VAMANA__CPU_HAS("avx512vnni");
    }
#endif
#if defined(NODEDB_VAMANA__NEON)
    if (kernels == &nodedb_vamana__set_neondot.one) {
#if defined(__linux__)
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__ARM_FEATURE_DOTPROD)
        return true;
#else
        return false;
#endif
    }
#endif
    return true;
}

/* The set of that name, or without a name the last usable one. NULL and the reason: unavailable. */
static const nodedb_vamana__kernel_set *nodedb_vamana__choose_kernels(const char *name, nodedb_error *err) {
    const nodedb_vamana__kernel_set *best = NULL;
    for (size_t i = 0; nodedb_vamana__sets[i] != NULL; i++) {
        const nodedb_vamana__kernel_set *set = nodedb_vamana__sets[i];
        if (name != NULL && strcmp(name, set->one.name) != 0) continue;
        if (nodedb_vamana_kernels_usable(&set->one)) best = set;
        else if (name != NULL) {
            (void)nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "this CPU has no instructions for the kernel \"%s\"",
                               name);
            return NULL;
        }
    }
    if (best == NULL && name != NULL) /* without a name there is always the plain set */
        (void)nodedb_fail(err, NODEDB_ERR_UNSUPPORTED, 0, "this build has no kernel \"%s\"", name);
    return best;
}

#endif /* NODEDB_VAMANA_IMPLEMENTATION */

/* BEGIN NODEDB LICENCE
 *
 * This software is available under two licences. Choose the one that you prefer.
 *
 * ALTERNATIVE A: MIT License
 *
 * Copyright (c) 2026 the NodeDB authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * ALTERNATIVE B: Public Domain (www.unlicense.org)
 *
 * This is free and unencumbered software released into the public domain.
 *
 * Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code form
 * or as a compiled binary, for any purpose, commercial or non-commercial, and by any means.
 *
 * In jurisdictions that recognize copyright laws, the author or authors of this software dedicate any and all
 * copyright interest in the software to the public domain. We make this dedication for the benefit of the public at
 * large and to the detriment of our heirs and successors. We intend this dedication to be an overt act of
 * relinquishment in perpetuity of all present and future rights to this software under copyright law.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
 * FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * END NODEDB LICENCE */
