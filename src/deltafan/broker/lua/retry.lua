-- An attempt failed, and another is to follow: its last events, then a place among the delayed.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 delayed
-- ARGV  1 id  2 attempt  3 worker  4 seq of the first event  5 wait ms  6 group  7 attempt's error (JSON)
--       8 own channel  9 number of events n  10…9+n the events  then field, value of the record
-- Gives {delayed | duplicate | cancelled | gap | fenced | gone, last seq}
local job, log, live, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id = ARGV[1]
local h = read_job(job)
if not h then
  return {'gone', -1}
end
local first, last, n = tonumber(ARGV[4]), tonumber(h.seq), tonumber(ARGV[9])
if h.attempt == ARGV[2] and h.state == 'delayed' and last == first + n - 1 then
  return {'duplicate', last}
end
if h.state ~= 'running' or h.attempt ~= ARGV[2] or h.owner ~= ARGV[3] then
  return {'fenced', -1}
end
if h.cancel == '1' then
  return {'cancelled', last}
end
local missing = gap(job, log, first, last)
if missing then
  return missing
end
for i = 1, n do
  redis.call('XADD', log, ARGV[2] .. '-' .. int(first + i - 1), 'e', ARGV[9 + i])
  publish(live, ARGV[8], ARGV[9 + i])
end
add_failure(job, ARGV[7])
redis.call('HSET', job, 'state', 'delayed', 'seq', int(first + n - 1), 'owner', '', 'entry', '', 'lost', '',
  unpack(ARGV, 10 + n))
redis.call('ZADD', KEYS[5], int(now_ms() + tonumber(ARGV[5])), id)
drop_entry(stream, ARGV[6], h.entry)
return {'delayed', first + n - 1}
