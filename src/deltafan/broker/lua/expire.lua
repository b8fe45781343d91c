-- End a job that has waited past its deadline.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 delayed  6 deadlines  7 expiries
-- ARGV  1 id  2 group  3 retention s
-- Gives expired | early | moved look again | no
local k = {job = KEYS[1], log = KEYS[2], live = KEYS[3], expiries = KEYS[7]}
local id = ARGV[1]
local h = read_job(k.job)
if not h or (h.state ~= 'queued' and h.state ~= 'delayed') or h.attempt ~= '0' then
  redis.call('ZREM', KEYS[6], id)
  return 'no'
end
local now = now_ms()
if tonumber(h.deadline) > now then
  return 'early'
end
if h.stream ~= KEYS[4] then
  return 'moved'
end
if h.retention == '' then h.retention = ARGV[3] end
redis.call('ZREM', KEYS[5], id)
redis.call('ZREM', KEYS[6], id)
drop_entry(KEYS[4], ARGV[2], h.entry)
redis.call('HSET', k.job, 'entry', '')
end_unowned(k, id, h, now, 'expired', 'expired', 'expired', 'not started within expires_in')
return 'expired'
