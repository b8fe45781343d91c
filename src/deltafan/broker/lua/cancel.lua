-- Cancel: a waiting job ends at once; the worker of a running one is told, and can then end it in no other way.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 delayed  6 deadlines  7 expiries
-- ARGV  1 id  2 tenant or '' for any  3 group  4 retention s  5 control channel's prefix
-- Gives {cancelled | cancelling, state before} | {ended, state} | {moved} look again | {unknown}
local k = {job = KEYS[1], log = KEYS[2], live = KEYS[3], expiries = KEYS[7]}
local id = ARGV[1]
local h = read_job(k.job)
if not h or (ARGV[2] ~= '' and h.tenant ~= ARGV[2]) then
  return {'unknown'}
end
if h.state == 'running' then
  redis.call('HSET', k.job, 'cancel', '1')
  redis.call(PUBLISH, ARGV[5] .. h.owner, 'cancel ' .. id)
  return {'cancelling', 'running'}
end
if h.state ~= 'queued' and h.state ~= 'delayed' then
  return {'ended', h.state}
end
if h.stream ~= KEYS[4] then
  return {'moved'}
end
if h.retention == '' then h.retention = ARGV[4] end
redis.call('ZREM', KEYS[5], id)
redis.call('ZREM', KEYS[6], id)
drop_entry(KEYS[4], ARGV[3], h.entry)
redis.call('HSET', k.job, 'cancel', '1', 'entry', '')
end_unowned(k, id, h, now_ms(), 'cancelled', 'cancelled', '', '')
return {'cancelled', h.state}
